//! Pages, and lists that never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Refusal, answer};
use crate::Shared;
use crate::catalog::{REGIONS, SIZES, region_json, size_json};

/// Parameters of a request's address.
pub(super) type Parameters = Query<BTreeMap<String, String>>;

/// Entries of a page where the request says nothing.
const PAGE_SIZE: usize = 20;
/// Most entries of a page.
const PAGE_MAX: usize = 200;

/// One page of a list called `name`, which lies at `path`.
pub(super) fn page(
    shared: &Shared,
    path: &str,
    name: &str,
    items: Vec<Value>,
    parameters: &BTreeMap<String, String>,
) -> Result<Response, Refusal> {
    let number = |name: &str, default: usize, max: usize| match parameters.get(name) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(Refusal::unprocessable(format!("{name} must be between 1 and {max}."))),
        },
    };
    let (page, size) = (number("page", 1, usize::MAX)?, number("per_page", PAGE_SIZE, PAGE_MAX)?);
    let total = items.len();
    let last = total.div_ceil(size).max(1);
    let link = |page: usize| {
        let mut query: Vec<String> = parameters
            .iter()
            .filter(|(key, _)| *key != "page")
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        query.push(format!("page={page}"));
        format!("{}{path}?{}", shared.state().url, query.join("&"))
    };
    let mut pages = serde_json::Map::new();
    if page > 1 {
        pages.insert("first".into(), link(1).into());
        pages.insert("prev".into(), link(page - 1).into());
    }
    if page < last {
        pages.insert("next".into(), link(page + 1).into());
        pages.insert("last".into(), link(last).into());
    }
    let links = if pages.is_empty() { json!({}) } else { json!({"pages": pages}) };
    let shown: Vec<Value> = items.into_iter().skip((page - 1).saturating_mul(size)).take(size).collect();
    Ok(answer(StatusCode::OK, json!({name: shown, "links": links, "meta": {"total": total}})))
}

pub(super) async fn account(State(shared): State<Arc<Shared>>) -> Response {
    let account = json!({
        "droplet_limit": shared.options.droplet_limit, "floating_ip_limit": 3, "reserved_ip_limit": 3, "volume_limit": 100,
        "email": "emulator@example.org", "name": "Emulator", "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
        "email_verified": true, "status": "active", "status_message": "",
        "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "emulated"},
    });
    answer(StatusCode::OK, json!({"account": account}))
}

pub(super) async fn regions(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let items = REGIONS.iter().map(|region| region_json(region.0)).collect();
    page(&shared, "/v2/regions", "regions", items, &parameters)
}

pub(super) async fn sizes(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    page(&shared, "/v2/sizes", "sizes", SIZES.iter().map(size_json).collect(), &parameters)
}
