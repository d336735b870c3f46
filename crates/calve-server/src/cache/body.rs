//! Bodies of requests: limited, told when they are cut short, given up when they stall.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use calve_store::http::ProblemKind;
use http_body_util::BodyExt;

use super::answer::{Answered, Refusal};

/// How long a client may send nothing in the middle of a body.
const STALL_MAX: Duration = Duration::from_secs(30);

/// A body that is read piece by piece.
pub struct Incoming {
    body: Body,
    announced: Option<u64>,
    taken: u64,
    max: u64,
}

impl Incoming {
    /// A body of at most `max` bytes; one that announces more is refused at once.
    pub fn new(headers: &HeaderMap, body: Body, max: u64) -> Answered<Self> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|announced| announced > max) {
            return Err(Refusal::too_large(max as usize));
        }
        Ok(Self { body, announced, taken: 0, max })
    }

    /// How many bytes it may have, as far as is known.
    pub fn bound(&self) -> u64 {
        self.announced.unwrap_or(self.max)
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Answered<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(STALL_MAX, self.body.frame()).await.map_err(|_| {
                let message = format!("the request stalled after {} bytes", self.taken);
                Refusal::new(StatusCode::REQUEST_TIMEOUT, ProblemKind::Failed, message)
            })?;
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
