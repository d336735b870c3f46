//! `/v1/machines/{name}/logs`: what a machine said, live or afterwards.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use calve_core::DriverName;
use calve_wire::api::Problem;
use calve_wire::frame::{Channel, Frame, LogEntry};
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::extract::{Named, Params};
use super::problem::{ApiError, ApiResult};
use crate::logs::{LogError, LogStream, Query};

/// Media type of log entries as frames ([`calve_wire::frame`]).
pub const LOG_FRAMES: &str = "application/x-calve-log";
/// Entries that are gathered into one piece of the answer: few enough that a live log is not delayed, as only what is
/// there already is gathered.
const GATHERED_MAX: usize = 64;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LogParams {
    /// Goes on with what comes, until the machine has ended.
    #[serde(default)]
    follow: bool,
    /// Only what was said then or later, in milliseconds since the epoch.
    since_ms: Option<u64>,
    /// Of what is there already, only the last so many lines.
    tail: Option<u64>,
    /// Only entries from this number on: who has read some goes on behind them. The console, which has no numbers, is
    /// then left out where other streams are wanted too.
    from: Option<u64>,
    /// Only this: `stdout`, `stderr` or `console`; several with commas between them. Without it everything but the
    /// console, which has no times of its own: its bytes count as of when it was written to last.
    stream: Option<String>,
}

/// A machine's log: frames for `Accept: application/x-calve-log`, otherwise the plain bytes.
#[utoipa::path(get, path = "/v1/machines/{name}/logs",
    params(("name" = String, Path, description = "Name or id"), LogParams), responses(
    (status = 200, content((Vec<u8> = "application/x-calve-log"), (String = "text/plain"))),
    (status = "default", body = Problem)))]
pub async fn logs(
    State(api): State<Api>,
    Named(name): Named,
    Params(params): Params<LogParams>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let mut channels = channels(params.stream.as_deref())?;
    if params.from.is_some() && channels.len() > 1 {
        channels.retain(|channel| *channel != Channel::Console);
    }
    let console = channels.contains(&Channel::Console);
    let record = api.find(&name).await?;
    if channels == [Channel::Console] && record.driver == Some(DriverName::Sandbox) {
        return Err(ApiError::bad_request(format!("{} is a sandbox, which has no console", record.name))
            .hint(format!("`calve logs {}` shows its output", record.name)));
    }
    let query = Query {
        from_seq: params.from.unwrap_or(0),
        since_unix_ms: params.since_ms,
        tail_lines: params.tail,
        channels,
    };
    let live = params.follow && !record.state.is_terminal();
    let entries = match live {
        true => super::attach::followed(&api, record.id, query.clone()).await?,
        false => api.logs.read(record.id, query.clone()).await?,
    };
    let entries = match (console, live) {
        (false, _) => entries,
        (true, true) => api.world.console(&record).follow(&query, entries).await,
        // A boot comes before everything else.
        (true, false) => api.world.console(&record).read(&query).await.chain(entries).boxed(),
    };
    let wanted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(match wanted.contains(LOG_FRAMES) {
        true => answer(LOG_FRAMES, entries, frame),
        false => {
            answer("text/plain; charset=utf-8", entries, |entry, out| out.extend_from_slice(&entry.bytes))
        }
    })
}

fn channels(text: Option<&str>) -> ApiResult<Vec<Channel>> {
    let words = text.into_iter().flat_map(|text| text.split(','));
    let channel = |word: &str| match word {
        "stdout" => Ok(Channel::Stdout),
        "stderr" => Ok(Channel::Stderr),
        "console" => Ok(Channel::Console),
        _ => Err(ApiError::bad_request(format!("{word:?} is no stream of a log"))
            .hint("use stdout, stderr or console")),
    };
    words.map(channel).collect()
}

fn frame(entry: LogEntry, out: &mut Vec<u8>) {
    Frame::Log(entry).encode(out);
}

fn answer(media_type: &'static str, entries: LogStream, encode: fn(LogEntry, &mut Vec<u8>)) -> Response {
    let pieces = entries.ready_chunks(GATHERED_MAX).map(move |entries| {
        let mut bytes = Vec::new();
        entries.into_iter().for_each(|entry| encode(entry, &mut bytes));
        Ok::<_, std::convert::Infallible>(Bytes::from(bytes))
    });
    ([(header::CONTENT_TYPE, media_type)], Body::from_stream(pieces)).into_response()
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full { .. } => Self::disk_full(),
            LogError::Removed => {
                Self::new(calve_wire::api::ProblemKind::NotFound, "the machine's log was removed")
            }
            error @ (LogError::Gap { .. } | LogError::Io { .. }) => {
                Self::internal("the log cannot be read", &error)
            }
        }
    }
}
