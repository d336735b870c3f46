//! Droplets and their actions.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lists::{Parameters, page};
use super::tags::is_tag;
use super::{Refusal, answer};
use crate::catalog::{REGIONS, size};
use crate::state::New;
use crate::{Droplet, Shared};

/// Most bytes of user data.
const USER_DATA_MAX_BYTES: usize = 64 << 10;
/// Most droplets of one request.
const NAMES_MAX: usize = 10;

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let items = {
        let (state, options) = (shared.state(), &shared.options);
        let (tag, name) = (parameters.get("tag_name"), parameters.get("name"));
        let listed = state.listed(options.list_lag, tag.map(String::as_str), name.map(String::as_str));
        listed.iter().map(|droplet| state.droplet_json(droplet, options.boot)).collect()
    };
    page(&shared, "/v2/droplets", "droplets", items, &parameters)
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let body: Value = serde_json::from_slice(&body)
        .map_err(|_| Refusal::unprocessable("The request body could not be parsed as JSON"))?;
    let many = body["names"].as_array();
    let names: Vec<Value> = many.cloned().unwrap_or_else(|| vec![body["name"].clone()]);
    if names.is_empty() || names.len() > NAMES_MAX {
        return Err(Refusal::unprocessable("names must hold 1 to 10 names"));
    }
    let mut state = shared.state();
    let image = state.image(&body["image"], shared.options.boot);
    let new: Vec<New> =
        names.iter().map(|name| checked(name, &body, image.as_ref())).collect::<Result<_, _>>()?;
    if state.droplets().count() + new.len() > shared.options.droplet_limit {
        return Err(Refusal::unprocessable("creating this/these droplet(s) will exceed your droplet limit"));
    }
    let boot = shared.options.boot;
    let (mut made, mut actions) = (Vec::new(), Vec::new());
    for new in new {
        let droplet = state.create(new);
        let action = state.act(droplet.id, "create");
        let href = format!("{}/v2/actions/{}", state.url, action.id);
        actions.push(json!({"id": action.id, "rel": "create", "href": href}));
        made.push(droplet);
    }
    let json: Vec<Value> = made.iter().map(|droplet| state.droplet_json(droplet, boot)).collect();
    drop(state);
    if let Some(backing) = &shared.options.backing {
        made.iter().for_each(|droplet| backing.created(droplet));
    }
    let shown = if many.is_some() { json!({"droplets": json}) } else { json!({"droplet": json[0]}) };
    let mut shown = shown;
    shown["links"] = json!({"actions": actions});
    Ok(answer(StatusCode::ACCEPTED, shown))
}

fn checked(name: &Value, body: &Value, image: Option<&(u64, Vec<String>)>) -> Result<New, Refusal> {
    let no = |message: &str| Err(Refusal::unprocessable(message));
    let name = name.as_str().unwrap_or_default();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')) {
        return no("Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)");
    }
    let Some(size) = size(body["size"].as_str().unwrap_or_default()) else {
        return no("You specified an invalid size for Droplet creation.");
    };
    let region = body["region"].as_str().unwrap_or_default();
    let Some((region, _, true)) = REGIONS.iter().find(|known| known.0 == region) else {
        return no("Region is not available");
    };
    if !size.regions.contains(region) {
        return no("Size is not available in this region.");
    }
    let Some((image, regions)) = image else {
        return no("You specified an invalid image for Droplet creation.");
    };
    if !regions.iter().any(|known| known == region) {
        return no("The image you selected is not available in the region that you selected.");
    }
    let user_data = body["user_data"].as_str().unwrap_or_default().to_owned();
    if user_data.len() > USER_DATA_MAX_BYTES {
        return no("User data cannot be larger than 64 KiB");
    }
    let tags: Option<Vec<String>> = match &body["tags"] {
        Value::Null => Some(Vec::new()),
        tags => {
            tags.as_array().and_then(|tags| tags.iter().map(|tag| tag.as_str().map(str::to_owned)).collect())
        }
    };
    let Some(tags) = tags.filter(|tags| tags.iter().all(|tag| is_tag(tag))) else {
        return no("Tags contain invalid characters or are too long");
    };
    let (name, region, size) = (name.to_owned(), (*region).to_owned(), size.slug.to_owned());
    Ok(New { name, region, size, image: *image, user_data, tags })
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
) -> Result<Response, Refusal> {
    let mut state = shared.state();
    let droplet = state.droplet(id).cloned().ok_or_else(Refusal::not_found)?;
    Ok(answer(StatusCode::OK, json!({"droplet": state.droplet_json(&droplet, shared.options.boot)})))
}

pub(super) async fn destroy(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
) -> Result<Response, Refusal> {
    if !shared.state().destroy(id) {
        return Err(Refusal::not_found());
    }
    tell_gone(&shared, &[id]);
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn destroy_tagged(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let tag = parameters.get("tag_name").ok_or_else(|| Refusal::unprocessable("tag_name is missing"))?;
    let gone: Vec<u64> = {
        let mut state = shared.state();
        let ids = state.tags.get(tag).cloned().unwrap_or_default();
        ids.into_iter().filter(|id| state.destroy(*id)).collect()
    };
    tell_gone(&shared, &gone);
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn tell_gone(shared: &Shared, ids: &[u64]) {
    if let Some(backing) = &shared.options.backing {
        ids.iter().for_each(|id| backing.destroyed(*id));
    }
}

pub(super) async fn actions(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let items = {
        let mut state = shared.state();
        state.droplet(id).ok_or_else(Refusal::not_found)?;
        let of = state.actions.values().rev().filter(|action| action.droplet == id);
        of.map(|action| action.json(shared.options.boot)).collect()
    };
    page(&shared, &format!("/v2/droplets/{id}/actions"), "actions", items, &parameters)
}

pub(super) async fn action(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
) -> Result<Response, Refusal> {
    let state = shared.state();
    let action = state.actions.get(&id).ok_or_else(Refusal::not_found)?;
    Ok(answer(StatusCode::OK, json!({"action": action.json(shared.options.boot)})))
}

pub(super) async fn act(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = body["type"].as_str().unwrap_or_default();
    let mut state = shared.state();
    let droplet: &mut Droplet = state.droplet(id).ok_or_else(Refusal::not_found)?;
    match kind {
        "power_on" => droplet.off = false,
        "power_off" | "shutdown" => droplet.off = true,
        "reboot" | "power_cycle" => {}
        _ => return Err(Refusal::unprocessable("action type is invalid")),
    }
    let action = state.act(id, kind);
    Ok(answer(StatusCode::CREATED, json!({"action": action.json(shared.options.boot)})))
}

pub(super) async fn action_of(
    State(shared): State<Arc<Shared>>,
    Path((droplet, id)): Path<(u64, u64)>,
) -> Result<Response, Refusal> {
    let state = shared.state();
    let action = state.actions.get(&id).filter(|action| action.droplet == droplet);
    let action = action.ok_or_else(Refusal::not_found)?;
    Ok(answer(StatusCode::OK, json!({"action": action.json(shared.options.boot)})))
}
