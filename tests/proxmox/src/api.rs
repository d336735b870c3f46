//! The routes, and what every request goes through: credentials, latency, faults.

mod access;
mod clones;
mod lists;
mod storages;
mod vms;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use hyper::ext::ReasonPhrase;
use serde_json::{Value, json};

use crate::{FaultKind, Shared, TOKEN};

/// Most bytes of an upload.
const UPLOAD_MAX_BYTES: usize = 64 << 20;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let api = Router::new()
        .route("/version", get(lists::version))
        .route("/access/ticket", post(access::ticket))
        .route("/access/permissions", get(access::permissions))
        .route("/cluster/nextid", get(lists::next_id))
        .route("/cluster/resources", get(lists::resources))
        .route("/nodes", get(lists::nodes))
        .route("/nodes/{node}/storage", get(storages::list))
        .route("/nodes/{node}/storage/{storage}/upload", post(storages::upload))
        .route("/nodes/{node}/storage/{storage}/content", get(storages::content))
        .route("/nodes/{node}/storage/{storage}/content/{*volume}", delete(storages::remove))
        .route("/nodes/{node}/qemu", get(vms::list))
        .route("/nodes/{node}/qemu/{vmid}", delete(vms::destroy))
        .route("/nodes/{node}/qemu/{vmid}/config", get(vms::config).put(vms::change).post(vms::change_later))
        .route("/nodes/{node}/qemu/{vmid}/resize", put(vms::resize))
        .route("/nodes/{node}/qemu/{vmid}/clone", post(clones::clone))
        .route("/nodes/{node}/qemu/{vmid}/status/current", get(vms::current))
        .route("/nodes/{node}/qemu/{vmid}/status/start", post(vms::start))
        .route("/nodes/{node}/qemu/{vmid}/status/stop", post(vms::stop))
        .route("/nodes/{node}/tasks", get(lists::tasks))
        .route("/nodes/{node}/tasks/{upid}/status", get(lists::task_status))
        .route("/nodes/{node}/tasks/{upid}/log", get(lists::task_log));
    Router::new()
        .nest("/api2/json", api)
        .fallback(async |method: Method, uri: Uri| {
            let path = uri.path().trim_start_matches("/api2/json");
            Refusal::new(501, format!("Method '{method} {path}' not implemented"))
        })
        .layer(DefaultBodyLimit::max(UPLOAD_MAX_BYTES))
        .layer(from_fn_with_state(shared.clone(), passage))
        .with_state(shared)
}

/// An answer that says no, as Proxmox VE does: in the phrase of the status line, and in the body.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    message: String,
    errors: Value,
}

impl Refusal {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: Value::Null }
    }

    /// What its code died of.
    pub fn died(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }

    /// A parameter that is wrong.
    pub fn parameter(name: &str, why: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: "Parameter verification failed.".to_owned(),
            errors: json!({name: why.into()}),
        }
    }

    pub fn forbidden(path: &str, right: &str) -> Self {
        Self::new(403, format!("Permission check failed ({path}, {right})"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({"data": null, "message": format!("{}\n", self.message)});
        if !self.errors.is_null() {
            body["errors"] = self.errors;
        }
        let status = StatusCode::from_u16(self.status).expect("a status");
        let mut response = (status, [(header::CONTENT_TYPE, JSON)], body.to_string()).into_response();
        let reason = self.message.replace(['\r', '\n'], " ");
        if let Ok(reason) = ReasonPhrase::try_from(reason.into_bytes()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

const JSON: &str = "application/json;charset=UTF-8";

pub(crate) fn answer(data: Value) -> Response {
    ([(header::CONTENT_TYPE, JSON)], json!({"data": data}).to_string()).into_response()
}

/// Part of a list, from `start` and at most `limit` entries, with how many there are.
fn page(entries: Vec<Value>, parameters: &Parameters) -> Response {
    let number =
        |name: &str, default: usize| parameters.get(name).and_then(|it| it.parse().ok()).unwrap_or(default);
    let total = entries.len();
    let shown: Vec<Value> = entries.into_iter().skip(number("start", 0)).take(number("limit", 50)).collect();
    ([(header::CONTENT_TYPE, JSON)], json!({"data": shown, "total": total}).to_string()).into_response()
}

/// Parameters of a request.
pub(crate) type Parameters = BTreeMap<String, String>;

/// The fields of a form, or of an address.
fn fields(text: &str) -> Result<Parameters, Refusal> {
    let uri: Uri = format!("/?{text}").parse().map_err(|_| Refusal::new(400, "bad request"))?;
    Query::try_from_uri(&uri).map(|Query(fields)| fields).map_err(|_| Refusal::new(400, "bad request"))
}

fn form(body: &Bytes) -> Result<Parameters, Refusal> {
    fields(std::str::from_utf8(body).map_err(|_| Refusal::new(400, "bad request"))?)
}

/// Who asks; in the request's extensions.
#[derive(Clone)]
pub(crate) struct User(pub String);

/// What every request goes through.
async fn passage(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(shared.options.latency).await;
    let is_login = request.uri().path() == "/api2/json/access/ticket";
    match known(&shared, request.method(), request.headers()) {
        Ok(user) => drop(request.extensions_mut().insert(User(user))),
        Err(refusal) if !is_login => return dated(refusal.into_response()),
        Err(_) => {}
    }
    let fault = shared.plans().of(request.method().as_str(), request.uri().path());
    let lost = |status: u16| match status {
        596 => Refusal::new(596, "Connection timed out"),
        status => Refusal::new(status, "lost on purpose"),
    };
    dated(match fault {
        None => next.run(request).await,
        Some(FaultKind::FailBefore(status)) => lost(status).into_response(),
        Some(FaultKind::FailAfter(status)) => {
            next.run(request).await;
            lost(status).into_response()
        }
        Some(FaultKind::RateLimited(_)) => Refusal::new(429, "Too Many Requests").into_response(),
        Some(FaultKind::LoseReply) => {
            next.run(request).await;
            broken()
        }
    })
}

fn dated(mut response: Response) -> Response {
    let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    response.headers_mut().insert(header::DATE, HeaderValue::from_str(&now).expect("printable"));
    response
}

/// The user whose token or ticket a request brings.
fn known(shared: &Shared, method: &Method, headers: &HeaderMap) -> Result<String, Refusal> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(token) = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("PVEAPIToken=")) {
        let (id, _) = TOKEN.split_once('=').expect("it has a secret");
        return match token == TOKEN {
            true => Ok(id.to_owned()),
            false if token.starts_with(&format!("{id}=")) => Err(Refusal::new(401, "invalid token value!")),
            false => Err(Refusal::new(401, "no such token or user")),
        };
    }
    let cookies = text(header::COOKIE).unwrap_or_default();
    let ticket = cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("PVEAuthCookie="));
    let Some(ticket) = ticket else { return Err(Refusal::new(401, "No ticket")) };
    let ticket = ticket.trim_matches('"').replace("%3A", ":");
    let state = shared.state();
    let forged = state
        .tickets
        .get(&ticket)
        .ok_or_else(|| Refusal::new(401, "permission denied - invalid PVE ticket"))?;
    if method != Method::GET
        && headers.get("CSRFPreventionToken").and_then(|it| it.to_str().ok()) != Some(&**forged)
    {
        return Err(Refusal::new(401, "Permission denied - invalid csrf token"));
    }
    Ok(crate::USER.to_owned())
}

/// Headers, and then the connection breaks.
fn broken() -> Response {
    let parts = [Ok(Bytes::from_static(b"{\"da")), Err(std::io::Error::other("lost on purpose"))];
    Response::new(Body::from_stream(futures_util::stream::iter(parts)))
}
