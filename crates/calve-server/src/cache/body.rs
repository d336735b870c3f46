//! Bodies of requests: limited, told when they are cut short, given up when they stall.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use calve_store::http::ProblemKind;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::answer::{Answered, Refusal};

/// How long a client may send nothing in the middle of a body.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Slowest body, in bytes a second on average: who sends a byte now and then holds the room of a whole body.
const RATE_MIN_BYTES: u64 = 4 * 1024;

/// A body that is read piece by piece.
pub struct Incoming {
    body: Body,
    announced: Option<u64>,
    taken: u64,
    max: u64,
    /// When the first bytes were asked for.
    began: Option<Instant>,
}

impl Incoming {
    /// A body of at most `max` bytes; one that announces more is refused at once.
    pub fn new(headers: &HeaderMap, body: Body, max: u64) -> Answered<Self> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|announced| announced > max) {
            return Err(Refusal::too_large(max as usize));
        }
        Ok(Self { body, announced, taken: 0, max, began: None })
    }

    /// How many bytes it may have, as far as is known.
    pub fn bound(&self) -> u64 {
        self.announced.unwrap_or(self.max)
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Answered<Option<Bytes>> {
        loop {
            let elapsed = self.began.get_or_insert_with(Instant::now).elapsed();
            if elapsed > STALL_MAX && self.taken / RATE_MIN_BYTES < elapsed.as_secs() - STALL_MAX.as_secs() {
                return Err(self.stalled());
            }
            let frame = tokio::time::timeout(STALL_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| self.stalled())?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.cut_short(&error)),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.taken += data.len() as u64;
                    if self.taken > self.max {
                        return Err(Refusal::too_large(self.max as usize));
                    }
                    return Ok(Some(data));
                }
            }
        }
    }

    /// The whole of it.
    pub async fn collect(mut self) -> Answered<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    fn stalled(&self) -> Refusal {
        let message = format!("the request stalled after {} bytes", self.taken);
        Refusal::new(StatusCode::REQUEST_TIMEOUT, ProblemKind::Failed, message)
    }

    fn cut_short(&self, error: &axum::Error) -> Refusal {
        let message = match self.announced {
            Some(announced) => {
                format!("it ended after {} bytes, and {announced} were announced", self.taken)
            }
            None => format!("it broke off after {} bytes", self.taken),
        };
        tracing::debug!(%error, "a request's body was cut short");
        Refusal::damaged("the request", message)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// A body of `pieces`, each a second after the one before.
    async fn sent(pieces: Vec<Bytes>) -> Answered<Bytes> {
        let stream = stream::unfold(pieces.into_iter(), |mut pieces| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::convert::Infallible>(pieces.next()?), pieces))
        });
        Incoming::new(&HeaderMap::new(), Body::from_stream(stream), 1 << 20)?.collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_byte_now_and_then_is_given_up_and_a_slow_line_is_not() {
        let slow = Bytes::from(vec![0; RATE_MIN_BYTES as usize]);
        assert_eq!(sent(vec![slow; 200]).await.unwrap().len(), 200 * RATE_MIN_BYTES as usize);
        let refused = sent(vec![Bytes::from_static(b"x"); 200]).await.unwrap_err();
        assert!(refused.problem().message.contains("stalled after 3"), "{refused:?}");
    }
}
