//! `/v1/events`: what happened, from a point on, and as it happens.

use std::convert::Infallible;
use std::io;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use calve_wire::api::Problem;
use calve_wire::event::Event;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::extract::Params;
use super::problem::{ApiError, ApiResult};
use crate::events::{Cursor, time_of};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct EventParams {
    /// Goes on with what comes, as server-sent events.
    #[serde(default)]
    follow: bool,
    /// Only events behind this number. With `follow`, the header `Last-Event-ID` goes before it.
    since: Option<u64>,
    /// Only events of then or later, in milliseconds since the epoch.
    since_ms: Option<u64>,
    /// Of what is kept already, only the last so many.
    last: Option<u64>,
}

/// The kept events: a JSON array, or with `follow` server-sent events whose ids are the events' numbers.
#[utoipa::path(get, path = "/v1/events", params(EventParams), responses(
    (status = 200, content((Vec<Event> = "application/json"), (String = "text/event-stream"))),
    (status = "default", body = Problem)))]
pub async fn events(
    State(api): State<Api>,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let since = resumed.filter(|_| params.follow).or(params.since).unwrap_or(0);
    let passed_over = params.last.map_or(0, |count| api.events.last().saturating_sub(count));
    let since = since.max(passed_over);
    let since_ms = params.since_ms.unwrap_or(0);
    let unreadable = |error: io::Error| ApiError::internal("the events cannot be read", &error);
    let mut cursor = match since_ms {
        0 => api.events.after(since),
        ms => api.events.since_time(ms).map_err(unreadable)?.behind(since),
    };
    if params.follow {
        return Ok(follow(&api, cursor, since_ms));
    }
    let first = cursor.kept_lines().map_err(unreadable)?;
    let pieces = Array { cursor, since_ms, next: Some(first), begun: false };
    let head = [(header::CONTENT_TYPE, "application/json")];
    Ok((head, Body::from_stream(futures_util::stream::iter(pieces))).into_response())
}

/// The events as a JSON array, piece by piece; each as it was written.
struct Array {
    cursor: Cursor,
    since_ms: u64,
    /// Lines to go on with; none behind the end.
    next: Option<Vec<u8>>,
    begun: bool,
}

impl Iterator for Array {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let lines = self.next.take()?;
        let mut piece = Vec::with_capacity(lines.len() + 2);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if self.since_ms > 0 && time_of(line).is_some_and(|time| time < self.since_ms) {
                continue;
            }
            piece.push(if self.begun { b',' } else { b'[' });
            piece.extend_from_slice(line);
            self.begun = true;
        }
        if lines.is_empty() {
            piece.extend_from_slice(if self.begun { b"]" } else { b"[]" });
        } else {
            match self.cursor.kept_lines() {
                Ok(lines) => self.next = Some(lines),
                // The answer breaks off, which its reader notices.
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(piece.into()))
    }
}

fn follow(api: &Api, cursor: Cursor, since_ms: u64) -> Response {
    let shutdown = api.shutdown.clone();
    let pieces = futures_util::stream::unfold((cursor, shutdown), move |(mut cursor, shutdown)| async move {
        let events = shutdown.run_until_cancelled(cursor.next()).await?;
        let events = events.inspect_err(|error| tracing::error!(%error, "the events cannot be read")).ok()?;
        let wanted = events.iter().filter(|event| event.time_unix_ms >= since_ms);
        let piece: String = wanted.map(server_sent).collect();
        Some((Ok::<_, Infallible>(Bytes::from(piece)), (cursor, shutdown)))
    });
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (head, Body::from_stream(pieces)).into_response()
}

/// One event in the text form of the HTML standard, section "Server-sent events"; JSON holds no line breaks.
fn server_sent(event: &Event) -> String {
    let json = serde_json::to_string(event).expect("an event holds nothing that JSON cannot say");
    format!("id: {}\ndata: {json}\n\n", event.seq)
}
