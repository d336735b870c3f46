//! Images: the catalog's, and those that an account has had fetched from an address.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::lists::{Parameters, page};
use super::{Refusal, answer};
use crate::Shared;
use crate::catalog::{IMAGES, REGIONS, image_json};

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let private = parameters.get("private").is_some_and(|value| value == "true");
    let distribution = parameters.get("type").is_some_and(|value| value == "distribution");
    let wanted = |custom: bool| if custom { !distribution } else { !private };
    let mut items: Vec<Value> = IMAGES
        .iter()
        .filter(|image| wanted(image.slug.is_none()))
        .map(|image| image_json(image.id))
        .collect();
    if wanted(true) {
        let state = shared.state();
        items.extend(state.images.values().map(|image| image.json(shared.options.boot)));
    }
    page(&shared, "/v2/images", "images", items, &parameters)
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(named): Path<String>,
) -> Result<Response, Refusal> {
    let state = shared.state();
    let image =
        state.image_json(&Value::String(named), shared.options.boot).ok_or_else(Refusal::not_found)?;
    Ok(answer(StatusCode::OK, json!({"image": image})))
}

/// Begins to fetch an image; nothing is fetched here.
pub(super) async fn create(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let body: Value = serde_json::from_slice(&body)
        .map_err(|_| Refusal::unprocessable("The request body could not be parsed as JSON"))?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let (name, url, region) = (text("name"), text("url"), text("region"));
    if name.is_empty() {
        return Err(Refusal::unprocessable("Name can't be blank"));
    }
    if !["http://", "https://", "ftp://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Refusal::unprocessable("Url is invalid"));
    }
    if !REGIONS.iter().any(|known| known.0 == region && known.2) {
        return Err(Refusal::unprocessable("Region is not available"));
    }
    let mut state = shared.state();
    let image = state.add_image(name, region);
    Ok(answer(StatusCode::ACCEPTED, json!({"image": image.json(shared.options.boot)})))
}

pub(super) async fn destroy(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<u64>,
) -> Result<Response, Refusal> {
    match shared.state().images.remove(&id) {
        Some(_) => Ok(StatusCode::NO_CONTENT.into_response()),
        None => Err(Refusal::not_found()),
    }
}
