//! Tags, and droplets that carry them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lists::{Parameters, page};
use super::{Refusal, answer};
use crate::Shared;

/// Most characters of a tag.
const TAG_MAX_CHARS: usize = 255;

/// Whether DigitalOcean takes it as a tag.
pub(super) fn is_tag(tag: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_');
    (1..=TAG_MAX_CHARS).contains(&tag.len()) && tag.chars().all(allowed)
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let items = {
        let state = shared.state();
        state.tags.keys().map(|name| state.tag_json(name)).collect()
    };
    page(&shared, "/v2/tags", "tags", items, &parameters)
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = body["name"].as_str().filter(|name| is_tag(name));
    let name = name.ok_or_else(|| Refusal::unprocessable("Tag name is invalid"))?;
    let mut state = shared.state();
    state.tags.entry(name.to_owned()).or_default();
    Ok(answer(StatusCode::CREATED, json!({"tag": state.tag_json(name)})))
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let state = shared.state();
    if !state.tags.contains_key(&name) {
        return Err(Refusal::not_found());
    }
    Ok(answer(StatusCode::OK, json!({"tag": state.tag_json(&name)})))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    shared.state().tags.remove(&name).ok_or_else(Refusal::not_found)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn tag(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let ids = droplets(&body)?;
    let mut state = shared.state();
    if !ids.iter().all(|id| state.droplet(*id).is_some()) {
        return Err(Refusal::not_found());
    }
    state.tags.get_mut(&name).ok_or_else(Refusal::not_found)?.extend(ids);
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn untag(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let ids = droplets(&body)?;
    shared.state().tags.get_mut(&name).ok_or_else(Refusal::not_found)?.retain(|id| !ids.contains(id));
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn droplets(body: &[u8]) -> Result<Vec<u64>, Refusal> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let id = |resource: &Value| {
        (resource["resource_type"] == "droplet").then(|| resource["resource_id"].as_str()?.parse().ok())?
    };
    let ids = body["resources"].as_array().and_then(|all| all.iter().map(id).collect());
    ids.ok_or_else(|| Refusal::unprocessable("resources are invalid"))
}
