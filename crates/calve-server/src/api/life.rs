//! Ends, leases and waiting.

use axum::Json;
use axum::extract::State;
use calve_core::{State as MachineState, StopReason};
use calve_wire::api::{ExtendLease, MachineView, Problem, StopMachine};
use calve_wire::event::What;

use super::extract::{JsonBody, Named};
use super::problem::ApiResult;
use super::{Api, Principal, check};
use crate::reconcile::records;
use crate::world::now;

/// Tells a machine to end: SIGTERM, the grace, SIGKILL. Answers at once; `wait` waits.
#[utoipa::path(post, path = "/v1/machines/{name}/stop",
    params(("name" = String, Path, description = "Name or id")), request_body = StopMachine, responses(
    (status = 200, body = MachineView), (status = "default", body = Problem)))]
pub async fn stop(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    JsonBody(request): JsonBody<StopMachine>,
) -> ApiResult<Json<MachineView>> {
    let grace = request.grace_ms.map(check::grace).transpose()?;
    let record = api.find(&name).await?;
    let ended = record.state.is_terminal();
    let reason = StopReason::Requested;
    let record = records::request_stop(&*api.state, &api.view, record.id, grace, reason, now()).await?;
    if !ended {
        api.audit(&by, &record, What::StopRequested);
    }
    Ok(Json(api.show(&record)))
}

/// Tells a machine to end, and its record, name and log to go once it has. Answers at once; `wait` waits.
#[utoipa::path(delete, path = "/v1/machines/{name}",
    params(("name" = String, Path, description = "Name or id")), request_body = StopMachine, responses(
    (status = 200, body = MachineView), (status = "default", body = Problem)))]
pub async fn remove(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    JsonBody(request): JsonBody<StopMachine>,
) -> ApiResult<Json<MachineView>> {
    let grace = request.grace_ms.map(check::grace).transpose()?;
    let record = api.find(&name).await?;
    let record = records::request_remove(&*api.state, &api.view, record.id, grace, now()).await?;
    api.audit(&by, &record, What::StopRequested);
    Ok(Json(api.show(&record)))
}

/// Moves the end of a machine's lease back.
#[utoipa::path(post, path = "/v1/machines/{name}/extend",
    params(("name" = String, Path, description = "Name or id")), request_body = ExtendLease, responses(
    (status = 200, body = MachineView), (status = "default", body = Problem)))]
pub async fn extend(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    JsonBody(request): JsonBody<ExtendLease>,
) -> ApiResult<Json<MachineView>> {
    let extension = check::extension(request.by_ms)?;
    let record = api.find(&name).await?;
    let record = records::extend(&*api.state, &api.view, record.id, extension, now()).await?;
    api.audit(&by, &record, What::Extended { deadline_unix_ms: record.deadline_unix_ms });
    Ok(Json(api.show(&record)))
}

/// Answers once the machine has ended and nothing of it is left alive, and is removed where that was asked for; may take
/// as long as its lease.
#[utoipa::path(get, path = "/v1/machines/{name}/wait",
    params(("name" = String, Path, description = "Name or id")), responses(
    (status = 200, body = MachineView), (status = "default", body = Problem)))]
pub async fn wait(State(api): State<Api>, Named(name): Named) -> ApiResult<Json<MachineView>> {
    let record = api.find(&name).await?;
    let mut watched = api.watches.watch(record.id);
    let mut last = api.show(&record);
    loop {
        let Some(record) = watched.borrow_and_update().clone() else {
            // Its record was removed, which happens to ended machines only; whoever waited may want its name.
            records::released(&*api.state, &last.summary.name, last.summary.id).await?;
            if !last.summary.state.is_terminal() {
                last.summary.state = MachineState::Gone;
            }
            return Ok(Json(last));
        };
        last = api.show(&record);
        if record.state.is_terminal() && !record.remove {
            return Ok(Json(last));
        }
        if watched.changed().await.is_err() {
            return Ok(Json(last));
        }
    }
}
