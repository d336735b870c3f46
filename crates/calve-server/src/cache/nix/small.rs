//! `/log/…` and `/realisations/…`: small files, kept as they come.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use calve_store::http::ProblemKind;

use super::{Asked, answer};
use crate::cache::Context;
use crate::cache::answer::{Answered, Refusal};
use crate::cache::body::Incoming;
use crate::cache::kept::Kind;

/// Answers with what a build said.
pub async fn log((State(context), Path(name), headers, _): Asked<String>) -> Answered {
    get(context, Kind::Log, name, headers, "text/plain; charset=utf-8").await
}

/// Keeps what a build said.
pub async fn put_log((State(context), Path(name), headers, body): Asked<String>) -> Answered {
    put(context, Kind::Log, name, headers, body).await
}

/// Answers with what an output turned out to be.
pub async fn realisation((State(context), Path(name), headers, _): Asked<String>) -> Answered {
    get(context, Kind::Realisation, name, headers, "application/json").await
}

/// Keeps what an output turned out to be.
pub async fn put_realisation((State(context), Path(name), headers, body): Asked<String>) -> Answered {
    put(context, Kind::Realisation, name, headers, body).await
}

async fn get(
    context: Arc<Context>,
    kind: Kind,
    name: String,
    headers: HeaderMap,
    content_type: &'static str,
) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    // Derivations are not part of a closure that runs.
    if !kind.is_name(&name) || !sight.is_all() {
        return Err(Refusal::missing(name));
    }
    let (kept, asked) = (context.kept.clone(), name.clone());
    let bytes = crate::cache::blocking(move || kept.get(kind, &asked)).await;
    let bytes = bytes.map_err(|error| Refusal::failed("a file cannot be read", &error))?;
    bytes.map(|bytes| answer(content_type, Body::from(bytes))).ok_or_else(|| Refusal::missing(name))
}

async fn put(context: Arc<Context>, kind: Kind, name: String, headers: HeaderMap, body: Body) -> Answered {
    context.gate.push(&headers)?;
    if !kind.is_name(&name) {
        return Err(Refusal::damaged(name, "its name is none for such a file"));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity") {
        let message = "it is compressed; send it as it is (log-compression=none)";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ProblemKind::Failed, message));
    }
    let body = Incoming::new(&headers, body, kind.max_bytes())?;
    let _room = context.room(body.bound()).await;
    let bytes = body.collect().await?;
    let kept = context.kept.clone();
    let done = crate::cache::blocking(move || kept.put(kind, &name, &bytes)).await;
    done.map_err(|error| Refusal::failed("a file cannot be kept", &error))?;
    Ok(Response::new(Body::empty()))
}
