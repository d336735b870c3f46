//! `/v1/server`, `/v1/doctor`, `/v1/prune`: the server itself.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use calve_store::prune::UNUSED_DEFAULT;
use calve_wire::api::{Problem, Prune, Pruned, ServerInfo};
use calve_wire::doctor::Check;
use calve_wire::event::What;

use super::extract::JsonBody;
use super::problem::ApiResult;
use super::{Api, Principal};
use crate::reconcile::records::{self, RecordsError};
use crate::world::{host, now};

/// How long a prune waits for what it removes to be gone.
const REMOVED_MAX: Duration = Duration::from_secs(30);

/// What the server is and where.
#[utoipa::path(get, path = "/v1/server", responses(
    (status = 200, body = ServerInfo), (status = "default", body = Problem)))]
pub async fn info(State(api): State<Api>) -> ApiResult<Json<ServerInfo>> {
    api.view.refresh(&*api.state).await?;
    Ok(Json(ServerInfo {
        version: api.version.clone(),
        pid: std::process::id(),
        started_unix_ms: api.started.0,
        machines: api.view.living() as u64,
        data_dir: api.dirs.data.display().to_string(),
        listens: api.listens.clone(),
        agents: api.agents.clone(),
    }))
}

/// Ends the server. Machines go on, each until its lease ends; the next server takes them over.
#[utoipa::path(post, path = "/v1/server/stop", responses(
    (status = 202, description = "It ends"), (status = "default", body = Problem)))]
pub async fn stop(State(api): State<Api>, by: Principal) -> StatusCode {
    tracing::info!(%by, "told to end");
    api.shutdown.cancel();
    StatusCode::ACCEPTED
}

/// What this host lacks for each driver, and for the server; checked anew, which may take seconds.
#[utoipa::path(get, path = "/v1/doctor", responses(
    (status = 200, body = Vec<Check>), (status = "default", body = Problem)))]
pub async fn doctor(State(api): State<Api>) -> Json<Vec<Check>> {
    let mut checks = api.world.preflight().await;
    checks.extend(host::checks(&api.dirs.data, &api.dirs.run));
    Json(checks)
}

/// Removes what ended machines left, and images and store paths that no living machine needs.
#[utoipa::path(post, path = "/v1/prune", request_body = Prune, responses(
    (status = 200, body = Pruned), (status = "default", body = Problem)))]
pub async fn prune(
    State(api): State<Api>,
    by: Principal,
    JsonBody(request): JsonBody<Prune>,
) -> ApiResult<Json<Pruned>> {
    let mut pruned = Pruned { machines: Vec::new(), store_paths: Vec::new(), freed_bytes: 0 };
    let mut removing = Vec::new();
    for record in records::list(&*api.state, &api.view).await? {
        if !record.state.is_terminal() || record.remove {
            continue;
        }
        pruned.freed_bytes += api.logs.size(record.id).unwrap_or(0);
        records::request_remove(&*api.state, &api.view, record.id, None, now()).await?;
        api.audit(&by, &record, What::Removed);
        pruned.machines.push(record.name.to_string());
        removing.push(record);
    }
    let removed = async {
        for record in &removing {
            let mut watched = api.watches.watch(record.id);
            while watched.borrow_and_update().is_some() && watched.changed().await.is_ok() {}
            records::released(&*api.state, &record.name, record.id).await?;
        }
        Ok(())
    };
    // What takes longer, because a disk is slow, is removed all the same.
    tokio::time::timeout(REMOVED_MAX, removed).await.unwrap_or(Ok::<_, RecordsError>(()))?;
    api.view.refresh(&*api.state).await?;
    let living: Vec<_> = api.view.all_living().iter().map(|record| record.spec.clone()).collect();
    pruned.freed_bytes += api.world.prune_images(api.dirs.images(), living.clone()).await?;
    if api.view.is_complete() {
        let unused_for = request.unused_ms.map_or(UNUSED_DEFAULT, Duration::from_millis);
        let paths = api.world.prune_store(living, unused_for).await?;
        pruned.freed_bytes += paths.bytes;
        pruned.store_paths = paths.paths.iter().map(ToString::to_string).collect();
    } else {
        tracing::warn!("store paths stay: what some machines run cannot be read by this version");
    }
    tracing::info!(
        %by,
        machines = pruned.machines.len(),
        store_paths = pruned.store_paths.len(),
        freed_bytes = pruned.freed_bytes,
        "pruned"
    );
    Ok(Json(pruned))
}
