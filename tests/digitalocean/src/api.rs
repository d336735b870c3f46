//! The routes, and what every request goes through: the token, the rate, latency, faults.

mod droplets;
mod images;
mod lists;
mod tags;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::faults::{FaultKind, Rate};
use crate::{Shared, TOKEN};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v2/account", get(lists::account))
        .route("/v2/regions", get(lists::regions))
        .route("/v2/sizes", get(lists::sizes))
        .route("/v2/images", get(images::list).post(images::create))
        .route("/v2/images/{id}", get(images::show).delete(images::destroy))
        .route("/v2/droplets", get(droplets::list).post(droplets::create).delete(droplets::destroy_tagged))
        .route("/v2/droplets/{id}", get(droplets::show).delete(droplets::destroy))
        .route("/v2/droplets/{id}/actions", get(droplets::actions).post(droplets::act))
        .route("/v2/droplets/{id}/actions/{action}", get(droplets::action_of))
        .route("/v2/actions/{id}", get(droplets::action))
        .route("/v2/tags", get(tags::list).post(tags::create))
        .route("/v2/tags/{name}", get(tags::show).delete(tags::remove))
        .route("/v2/tags/{name}/resources", post(tags::tag).delete(tags::untag))
        .fallback(async || Refusal::not_found())
        .layer(from_fn_with_state(shared.clone(), passage))
        .with_state(shared)
}

/// An answer that says no, as DigitalOcean does.
pub(crate) struct Refusal {
    status: StatusCode,
    id: &'static str,
    message: String,
}

impl Refusal {
    pub fn not_found() -> Self {
        let message = "The resource you were accessing could not be found.".to_owned();
        Self { status: StatusCode::NOT_FOUND, id: "not_found", message }
    }

    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, id: "unprocessable_entity", message: message.into() }
    }

    fn of(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status");
        let id = match status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::TOO_MANY_REQUESTS => "too_many_requests",
            _ => "server_error",
        };
        let message = match status {
            StatusCode::UNAUTHORIZED => "Unable to authenticate you",
            StatusCode::FORBIDDEN => "You are not authorized to perform this operation",
            StatusCode::TOO_MANY_REQUESTS => "API Rate limit exceeded.",
            _ => "Unexpected server-side error",
        };
        Self { status, id, message: message.to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        answer(self.status, json!({"id": self.id, "message": self.message}))
    }
}

pub(crate) fn answer(status: StatusCode, body: Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// What every request goes through.
async fn passage(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    static REQUESTS: AtomicU64 = AtomicU64::new(1);
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(shared.options.latency).await;
    let (rate, fault) = {
        let mut faults = shared.faults();
        let rate = faults.count();
        let fault = if rate.refused {
            None
        } else {
            faults.plans.of(request.method().as_str(), request.uri().path())
        };
        (rate, fault)
    };
    let known = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let mut retry_after = None;
    let mut response = if rate.refused {
        retry_after = Some(rate.reset_in.as_secs_f64().ceil().max(1.0) as u64);
        Refusal::of(429).into_response()
    } else if known != Some(&format!("Bearer {TOKEN}")) {
        Refusal::of(401).into_response()
    } else {
        match fault {
            None => next.run(request).await,
            Some(FaultKind::FailBefore(status)) => Refusal::of(status).into_response(),
            Some(FaultKind::RateLimited(seconds)) => {
                retry_after = Some(seconds);
                shared.faults().refused_for_rate += 1;
                Refusal::of(429).into_response()
            }
            Some(FaultKind::FailAfter(status)) => {
                next.run(request).await;
                Refusal::of(status).into_response()
            }
            Some(FaultKind::LoseReply) => {
                next.run(request).await;
                broken()
            }
        }
    };
    tell(response.headers_mut(), &rate, retry_after, number);
    response
}

/// Headers, and then the connection breaks.
fn broken() -> Response {
    let parts = [Ok(Bytes::from_static(b"{\"drop")), Err(std::io::Error::other("lost on purpose"))];
    Response::new(Body::from_stream(futures_util::stream::iter(parts)))
}

fn tell(headers: &mut HeaderMap, rate: &Rate, retry_after: Option<u64>, number: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut set = |name: &'static str, value: String| {
        headers.insert(name, HeaderValue::from_str(&value).expect("printable"));
    };
    set("ratelimit-limit", rate.limit.to_string());
    set("ratelimit-remaining", rate.remaining.to_string());
    set("ratelimit-reset", (now + rate.reset_in.as_secs()).to_string());
    set("x-request-id", format!("emulated-{number}"));
    if let Some(seconds) = retry_after {
        set("retry-after", seconds.to_string());
    }
}
