//! `/v1/events`: what happened, from a point on, and as it happens.

use std::convert::Infallible;

use axum::Json;
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
use crate::events::Cursor;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct EventParams {
    /// Goes on with what comes, as server-sent events.
    #[serde(default)]
    follow: bool,
    /// Only events behind this number. With `follow`, the header `Last-Event-ID` goes before it.
    since: Option<u64>,
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
    let mut cursor = api.events.after(since);
    if params.follow {
        return Ok(follow(&api, cursor));
    }
    let all = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        loop {
            let some = cursor.kept()?;
            if some.is_empty() {
                return Ok::<_, std::io::Error>(all);
            }
            all.extend(some);
        }
    });
    let all = all.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let all = all.map_err(|error| ApiError::internal("the events cannot be read", &error))?;
    Ok(Json(all).into_response())
}

fn follow(api: &Api, cursor: Cursor) -> Response {
    let shutdown = api.shutdown.clone();
    let pieces = futures_util::stream::unfold((cursor, shutdown), async |(mut cursor, shutdown)| {
        let events = shutdown.run_until_cancelled(cursor.next()).await?;
        let events = events.inspect_err(|error| tracing::error!(%error, "the events cannot be read")).ok()?;
        let piece: String = events.iter().map(server_sent).collect();
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
