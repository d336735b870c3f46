//! HTTP `/v1`: one file a resource. Requests are parsed and checked at the edge; what they change are records, and the
//! loop does the rest.

#![allow(unused_qualifications, reason = "utoipa's attribute writes out paths that are imported as well")]

mod adoptions;
mod attach;
mod check;
mod events;
mod exec;
mod extract;
mod files;
mod forward;
mod holds;
mod life;
mod listing;
mod logs;
mod machines;
mod principal;
mod problem;
mod reach;
mod server;
mod show;
mod socket;
mod systems;
mod watches;

use std::sync::Arc;

use axum::response::IntoResponse;
use axum::{Json, Router};
use calve_core::{MachineId, Timestamp};
use calve_wire::api::{AgentsDoor, CACHE_PREFIX, MachineView, ProblemKind};
use calve_wire::event::What;
use calve_wire::record::MachineRecord;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::dirs::Dirs;
use crate::events::EventLog;
use crate::logs::Logs;
use crate::reconcile::records::{self, View};
use crate::state::State;
use crate::systems::Systems;
use crate::world::World;

pub use extract::BODY_MAX_BYTES;
use holds::Holds;
use listing::Listing;
pub use principal::Principal;
pub use problem::{ApiError, ApiResult};
use watches::Watches;

/// Everything that requests need.
pub struct Context {
    /// The records.
    pub state: Arc<dyn State>,
    /// The records, parsed; shared with the loop.
    pub view: View,
    /// Agents, store, drivers, ports.
    pub world: Arc<World>,
    /// Output of machines.
    pub logs: Arc<Logs>,
    /// What happened.
    pub events: EventLog,
    /// Where things lie.
    pub dirs: Dirs,
    /// Version of the program.
    pub version: String,
    /// When this server started.
    pub started: Timestamp,
    /// Where it listens.
    pub listens: Vec<String>,
    /// Where agents of machines dial in, where they may.
    pub agents: Option<AgentsDoor>,
    /// Ends the server.
    pub shutdown: CancellationToken,
}

/// What handlers share.
#[derive(Clone)]
struct Api {
    context: Arc<Context>,
    watches: Watches,
    listing: Listing,
    holds: Holds,
    systems: Arc<Systems>,
}

impl std::ops::Deref for Api {
    type Target = Context;
    fn deref(&self) -> &Context {
        &self.context
    }
}

/// Describes what the types do not.
#[derive(OpenApi)]
#[openapi(info(
    title = "calve",
    description = "Runs Nix closures on machines. Errors are `application/problem+json`. Sockets are WebSockets whose \
                   binary messages begin with a channel byte (0 stdin, 1 stdout, 2 stderr, 3 console; nothing behind it \
                   closes the channel) and whose text messages are `StreamControl`. Under `/cache` lies a binary cache as \
                   Nix knows it (`nix copy --to http://HOST:PORT/cache`); over TCP the token may also come as the password \
                   of basic authentication. A machine's closure must be valid on the server's host or lie in that cache.",
    license(name = "Apache-2.0")
))]
#[openapi(components(schemas(calve_wire::api::StreamControl, calve_wire::api::ExecRequest)))]
struct Document;

/// The router of the API; to be called within a tokio runtime.
pub fn router(context: Context) -> Router {
    let context = Arc::new(context);
    let watches = Watches::start(context.state.clone(), context.view.clone(), context.shutdown.clone());
    let cache = context.world.cache().routes();
    let systems = Systems::start(context.state.clone(), context.world.clone(), context.shutdown.clone());
    context.world.switch_by(&systems);
    let listing = Listing::start(context.shutdown.clone());
    let api = Api { context, watches, listing, holds: Holds::default(), systems };
    let expecting = api.clone();
    tokio::spawn(async move { holds::expect_all(&expecting).await });
    let (router, document) = routes().split_for_parts();
    let document: Arc<str> = document.to_json().expect("the document is plain data").into();
    let served = move || async move {
        ([(axum::http::header::CONTENT_TYPE, "application/json")], document.to_string())
    };
    router
        .route("/v1/openapi.json", axum::routing::get(served))
        .nest(CACHE_PREFIX, cache)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

/// The OpenAPI document of the API.
pub fn document() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(machines::list, machines::create))
        .routes(routes!(adoptions::adopt))
        .routes(routes!(machines::get, life::remove))
        .routes(routes!(life::stop))
        .routes(routes!(life::extend))
        .routes(routes!(life::wait))
        .routes(routes!(logs::logs))
        .routes(routes!(attach::attach))
        .routes(routes!(exec::exec))
        .routes(routes!(forward::forward))
        .routes(routes!(systems::switch))
        .routes(routes!(systems::follow))
        .routes(routes!(systems::system))
        .routes(routes!(files::read, files::write))
        .routes(routes!(events::events))
        .routes(routes!(server::doctor))
        .routes(routes!(server::info))
        .routes(routes!(server::stop))
        .routes(routes!(server::prune))
}

impl Api {
    /// The record of the machine with this name or id.
    async fn find(&self, name_or_id: &str) -> ApiResult<Arc<MachineRecord>> {
        Ok(records::get(&*self.state, &self.view, name_or_id).await?)
    }

    /// The machine as clients see it in full.
    fn show(&self, record: &MachineRecord) -> MachineView {
        let report = self.world.agents().report(record.id);
        let mut view = show::view(record, report.as_ref(), &self.world.published(record.id));
        view.messages.extend(self.view.waits_for(record.id).map(|what| format!("waits for {what}")));
        view.messages.extend(self.world.away(record));
        view.bringing = self.world.seeds().bringing(record.id);
        view
    }

    /// Writes down who did what.
    fn audit(&self, by: &Principal, record: &MachineRecord, what: What) {
        tracing::info!(%by, machine = %record.name, id = %record.id, ?what);
        self.events.append(&by.to_string(), record.id, &record.name, what);
    }

    fn new_id(&self) -> MachineId {
        MachineId::new(crate::world::now(), crate::random::u128())
    }
}

async fn unknown_path(uri: axum::http::Uri) -> ApiError {
    ApiError::new(ProblemKind::NotFound, format!("there is no {}", uri.path()))
        .hint("GET /v1/openapi.json describes every path")
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> axum::response::Response {
    let problem = ApiError::bad_request(format!("{} cannot be asked with {method}", uri.path()))
        .hint("GET /v1/openapi.json describes every path");
    (axum::http::StatusCode::METHOD_NOT_ALLOWED, Json(problem.0)).into_response()
}
