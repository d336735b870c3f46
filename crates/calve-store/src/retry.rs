//! Requests tried again where that may help.

use std::time::Duration;

use crate::progress::Progress;
use crate::remote::RemoteError;

/// How often a request is made at most.
const ATTEMPTS_MAX: u32 = 5;
/// Wait before the second attempt; it doubles each time, to three seconds in all.
const BACKOFF: Duration = Duration::from_millis(200);

/// Makes a request until it succeeds, fails for good, or has failed too often. One that takes longer than `timeout` counts
/// as failed; `what` it is for, for the message.
pub async fn retried<T, F>(
    what: &str,
    timeout: Duration,
    progress: &Progress,
    mut request: impl FnMut() -> F,
) -> Result<T, RemoteError>
where
    F: Future<Output = Result<T, RemoteError>>,
{
    let mut backoff = BACKOFF;
    for attempt in 1.. {
        let error = match tokio::time::timeout(timeout, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => RemoteError::Unreachable {
                cache: "that was asked".to_owned(),
                message: format!("{what} took longer than {} seconds", timeout.as_secs_f32()),
            },
        };
        if attempt == ATTEMPTS_MAX || !error.may_pass() {
            return Err(error);
        }
        progress.retries.add(1);
        tokio::time::sleep(backoff).await;
        backoff *= 2;
    }
    unreachable!("the last attempt returns")
}
