//! `/v1/machines`: asking for machines and looking at them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use calve_core::MachineId;
use calve_core::limits::GRACE_DEFAULT;
use calve_nix::StorePath;
use calve_store::{Closure, ProgramError, Store, StoreError, TransferError};
use calve_wire::api::{CreateMachine, MachineSummary, MachineView, Problem, ProblemKind};
use calve_wire::event::What;
use calve_wire::machine::{MachineSpec, StoreDelivery, Workload};
use calve_wire::record::MachineRecord;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{JsonBody, Named, Params};
use super::problem::{ApiError, ApiResult};
use super::show::Said;
use super::{Api, Principal, check, holds};
use crate::cache::MaterialiseError;
use crate::chain;
use crate::reconcile::records::{self, NewMachine};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    /// Also machines that have ended.
    #[serde(default)]
    all: bool,
}

/// Machines, the oldest first: those that have not ended, or all.
#[utoipa::path(get, path = "/v1/machines", params(ListParams), responses(
    (status = 200, body = Vec<MachineSummary>), (status = "default", body = Problem)))]
pub async fn list(State(api): State<Api>, params: Params<ListParams>) -> ApiResult<Response> {
    api.view.refresh(&*api.state).await?;
    let rows = api.view.rows(params.0.all);
    if params.0.all {
        api.listing.keep_only(&rows);
    }
    let world = api.world.clone();
    let observe = move |id| (world.agents().said(id, Said::of), world.published(id));
    let pieces = api.listing.pieces(rows, observe).map(Ok::<_, std::convert::Infallible>);
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// A machine in full.
#[utoipa::path(get, path = "/v1/machines/{name}",
    params(("name" = String, Path, description = "Name or id")), responses(
    (status = 200, body = MachineView), (status = "default", body = Problem)))]
pub async fn get(State(api): State<Api>, Named(name): Named) -> ApiResult<Json<MachineView>> {
    let record = api.find(&name).await?;
    Ok(Json(api.show(&record)))
}

/// Asks for a machine: writes its record and answers; the machine comes to be by itself.
#[utoipa::path(post, path = "/v1/machines", request_body = CreateMachine, responses(
    (status = 201, body = MachineView), (status = "default", body = Problem)))]
pub async fn create(
    State(api): State<Api>,
    by: Principal,
    JsonBody(request): JsonBody<CreateMachine>,
) -> ApiResult<(StatusCode, Json<MachineView>)> {
    check::check(&request)?;
    if let Some(there) = asked_before(&api, request.id).await {
        return Ok(there);
    }
    check_closure(&api, &request.spec).await?;
    check_driver(&api, &request.spec).await?;
    declare(&api, &by, request).await
}

/// The machine that was asked for under this id before: the answer was lost.
pub(super) async fn asked_before(
    api: &Api,
    id: Option<MachineId>,
) -> Option<(StatusCode, Json<MachineView>)> {
    let record = records::get(&*api.state, &api.view, &id?.to_string()).await.ok()?;
    Some((StatusCode::CREATED, Json(api.show(&record))))
}

/// Writes the record of a machine in which everything was checked.
pub(super) async fn declare(
    api: &Api,
    by: &Principal,
    request: CreateMachine,
) -> ApiResult<(StatusCode, Json<MachineView>)> {
    let id = request.id.unwrap_or_else(|| api.new_id());
    let new = NewMachine {
        id,
        agent_token: format!("{:032x}", crate::random::u128()),
        name: request.name,
        spec: request.spec,
        ttl: request.ttl_ms.map(Duration::from_millis),
        grace: request.grace_ms.map_or(GRACE_DEFAULT, Duration::from_millis),
        held: request.hold,
    };
    let mut announced = None;
    let announce = |record: &MachineRecord| {
        api.audit(by, record, What::Declared);
        announced = Some(record.clone());
    };
    let (state, now) = (&*api.state, crate::world::now());
    let created = records::create_announced(state, &api.view, new, now, announce).await;
    if let (Err(_), Some(record)) = (&created, announced) {
        api.audit(by, &record, What::Removed);
    }
    let record = created?;
    if record.held {
        holds::expect(api, record.id);
    }
    Ok((StatusCode::CREATED, Json(api.show(&record))))
}

/// Refuses a closure that is not whole, and a program that cannot be started from it.
pub(super) async fn check_closure(api: &Api, spec: &MachineSpec) -> ApiResult<()> {
    let roots = crate::world::roots(spec);
    let program = match &spec.workload {
        Workload::Program(program) => Some(program.path.clone()),
        Workload::System { .. } | Workload::Base | Workload::Adopted { .. } => None,
    };
    if spec.store == Some(StoreDelivery::Lazy) {
        let closure = api.world.lazy_closure(&roots).ok_or_else(|| {
            let message = "no process on the server's host serves this closure lazily";
            ApiError::new(ProblemKind::NotFound, message)
                .hint("`calve run --store lazy` starts one, for a server on the same host")
        })?;
        return Ok(startable(closure, program).await?);
    }
    let store = api.world.store();
    match look(store.clone(), roots.clone(), program.clone()).await {
        Err(error @ (StoreError::Unknown { .. } | StoreError::MissingOnDisk { .. })) => {
            // It may have been pushed to this server's cache.
            if !api.world.cache().materialise(store, &roots).await? {
                return Err(error.into());
            }
            Ok(look(store.clone(), roots, program).await??)
        }
        looked => Ok(looked??),
    }
}

/// Whether the closure is whole, and the program in it can be started.
async fn look(
    store: Arc<Store>,
    roots: Vec<StorePath>,
    program: Option<String>,
) -> Result<Result<(), ProgramError>, StoreError> {
    let looking = tokio::task::spawn_blocking(move || store.closure(&roots));
    let closure = looking.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    Ok(startable(closure, program).await)
}

/// Whether the program can be started from the closure.
async fn startable(closure: Closure, program: Option<String>) -> Result<(), ProgramError> {
    let looking = tokio::task::spawn_blocking(move || {
        let checked = program.map(|program| calve_store::check_program(&closure, Path::new(&program)));
        checked.map_or(Ok(()), |checked| checked.map(drop))
    });
    looking.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Refuses a driver that this host cannot use. Where none was asked for, the loop finds one.
async fn check_driver(api: &Api, spec: &MachineSpec) -> ApiResult<()> {
    let Some(driver) = spec.driver else { return Ok(()) };
    match api.world.driver_state(driver).await.unusable {
        None => Ok(()),
        Some(why) => Err(ApiError::new(
            ProblemKind::Unusable,
            format!("the driver {driver} cannot be used on this host: {why}"),
        )
        .hint("choose another --driver, or see `calve doctor`")),
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            error if error.is_disk_full() => return Self::disk_full(),
            StoreError::Unknown { .. } | StoreError::MissingOnDisk { .. } => ProblemKind::NotFound,
            StoreError::Incomplete { .. } => ProblemKind::Unusable,
            _ => ProblemKind::BadRequest,
        };
        with_hint(Self::new(kind, chain(&error)), error.hint())
    }
}

impl From<MaterialiseError> for ApiError {
    fn from(error: MaterialiseError) -> Self {
        match error {
            MaterialiseError::Transfer(TransferError::Store(error)) => error.into(),
            error => Self::internal("the closure was not taken", &error),
        }
    }
}

impl From<ProgramError> for ApiError {
    fn from(error: ProgramError) -> Self {
        with_hint(Self::bad_request(chain(&error)), error.hint())
    }
}

fn with_hint(error: ApiError, hint: Option<String>) -> ApiError {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

impl From<records::RecordsError> for ApiError {
    fn from(error: records::RecordsError) -> Self {
        if let records::RecordsError::State(error) = error {
            return error.into();
        }
        Self(error.into())
    }
}
