//! Systems of machines: switching, looking, going back.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use calve_core::Kind;
use calve_wire::api::{Problem, ProblemKind};
use calve_wire::event::What;
use calve_wire::machine::{MachineSpec, Workload};
use calve_wire::system::{
    CONFIRM_MAX_MS, CONFIRM_MIN_MS, HEALTH_MAX_BYTES, HostFacts, PendingSwitch, SwitchRequest, SwitchStage,
    SwitchView, SystemView,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{JsonBody, Named, Params};
use super::problem::{ApiError, ApiResult};
use super::{Api, Principal, machines};
use crate::systems::{self, HostError, SystemsError};
use crate::world::now;

/// How long one request follows a switch before it answers without news: clients ask again.
const FOLLOW_MAX: Duration = Duration::from_secs(20);

/// Switches a machine to another system, or to its former one where none is named. Answers at once; the switch can be
/// followed, and goes on whoever follows it.
#[utoipa::path(post, path = "/v1/machines/{name}/switch",
    params(("name" = String, Path, description = "Name or id")), request_body = SwitchRequest, responses(
    (status = 202, body = SwitchView), (status = "default", body = Problem)))]
pub async fn switch(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    JsonBody(request): JsonBody<SwitchRequest>,
) -> ApiResult<(StatusCode, Json<SwitchView>)> {
    check(&request)?;
    let record = api.reach(&name).await?;
    if matches!(record.spec.workload, Workload::Program(_)) {
        return Err(ApiError::bad_request(format!("{} has no system that could be switched", record.name))
            .hint("systems are store paths with a kernel and an init: `calve run` boots them"));
    }
    let (toplevel, generation) = match &request.toplevel {
        Some(toplevel) => {
            let workload = Workload::System { toplevel: toplevel.clone() };
            machines::check_closure(&api, &MachineSpec::new(Kind::System, workload)).await?;
            (toplevel.to_string(), None)
        }
        None => {
            let facts = api.systems.facts(record.id).await?;
            former(&facts).ok_or_else(|| {
                ApiError::new(
                    ProblemKind::Conflict,
                    format!("{} has no generation to go back to", record.name),
                )
                .hint(format!("`calve history {}` lists them", record.name))
            })?
        }
    };
    let mut pending = PendingSwitch::new(
        format!("{:016x}", crate::random::u128() >> 64),
        record.name.to_string(),
        toplevel.clone(),
        request.action,
        by.to_string(),
        now().0,
    );
    (pending.health, pending.generation) = (request.health, generation);
    pending.confirm_ms = request.confirm_ms.unwrap_or(pending.confirm_ms);
    let view = api.systems.begin(record.id, pending).await?;
    let argv = vec!["switch-to-configuration".to_owned(), request.action.as_str().to_owned(), toplevel];
    api.audit(&by, &record, What::Exec { argv });
    Ok((StatusCode::ACCEPTED, Json(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct FollowParams {
    /// The stage that is known already: answers once it is another, or after a while.
    #[serde(default)]
    known: Option<SwitchStage>,
}

/// A switch as it stands.
#[utoipa::path(get, path = "/v1/machines/{name}/switches/{id}",
    params(("name" = String, Path, description = "Name or id"), ("id" = String, Path, description = "The switch"), FollowParams),
    responses((status = 200, body = SwitchView), (status = "default", body = Problem)))]
pub async fn follow(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    params: Params<FollowParams>,
) -> ApiResult<Json<SwitchView>> {
    let record = api.find(&name).await?;
    let following = api.systems.follow(record.id, &id, params.0.known, FOLLOW_MAX);
    let view = tokio::select! {
        view = following => view?,
        // A server that ends does not hold up its clients; the next one answers them.
        () = api.shutdown.cancelled() => api.systems.follow(record.id, &id, None, Duration::ZERO).await?,
    };
    view.map(Json).ok_or_else(|| {
        ApiError::new(ProblemKind::NotFound, format!("{} had no switch {id}", record.name))
            .hint(format!("`calve history {}` lists them", record.name))
    })
}

/// What a machine's system is like, how it differs from what it shall be, and how it came.
#[utoipa::path(get, path = "/v1/machines/{name}/system",
    params(("name" = String, Path, description = "Name or id")), responses(
    (status = 200, body = SystemView), (status = "default", body = Problem)))]
pub async fn system(State(api): State<Api>, Named(name): Named) -> ApiResult<Json<SystemView>> {
    let record = api.reach(&name).await?;
    if matches!(record.spec.workload, Workload::Program(_)) {
        return Err(ApiError::bad_request(format!("{} runs a program, and has no system", record.name))
            .hint("`calve status` shows what it runs"));
    }
    let known = api.systems.get(record.id).await?;
    let facts = api.systems.facts(record.id).await?;
    // Of a host that came with a system and that calve never switched, the profile says it.
    let desired = systems::desired(&known, &record).or_else(|| facts.profile.clone()).ok_or_else(|| {
        ApiError::new(ProblemKind::Conflict, format!("{} has no profile of systems", record.name))
    })?;
    let drift = systems::drift(&desired, &facts);
    Ok(Json(SystemView { desired, facts, drift, ended: known.ended }))
}

fn check(request: &SwitchRequest) -> ApiResult<()> {
    if let Some(confirm_ms) = request.confirm_ms
        && !(CONFIRM_MIN_MS..=CONFIRM_MAX_MS).contains(&confirm_ms)
    {
        return Err(ApiError::bad_request(format!(
            "the time to confirm is {confirm_ms} ms, and may be {CONFIRM_MIN_MS} to {CONFIRM_MAX_MS}"
        )));
    }
    if request.health.as_ref().is_some_and(|health| health.len() > HEALTH_MAX_BYTES || health.contains('\0'))
    {
        return Err(ApiError::bad_request(format!(
            "the health check may have {HEALTH_MAX_BYTES} bytes, none of them zero"
        ))
        .hint("put it into a script of the system"));
    }
    Ok(())
}

/// The generation before the current one.
fn former(facts: &HostFacts) -> Option<(String, Option<u64>)> {
    let current = facts.generations.iter().find(|generation| generation.current)?.number;
    let before = facts.generations.iter().rev().find(|generation| generation.number < current)?;
    Some((before.toplevel.clone(), Some(before.number)))
}

impl From<SystemsError> for ApiError {
    fn from(error: SystemsError) -> Self {
        match error {
            SystemsError::Held(view) => Self::new(
                ProblemKind::Conflict,
                format!(
                    "{} is being switched already: by {} to {} since {} (switch {}, {})",
                    view.machine,
                    view.by,
                    view.toplevel,
                    jiff::Timestamp::from_millisecond(view.begun_unix_ms.cast_signed()).unwrap_or_default(),
                    view.id,
                    view.stage.as_str()
                ),
            )
            .hint("wait until it has ended"),
            SystemsError::State(error) => error.into(),
            error @ SystemsError::Unreadable(_) => {
                Self::internal("the machine's system is not known", &error)
            }
        }
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Link(error) => error.into(),
            error @ HostError::Program { .. } => Self::internal("the host cannot be asked", &error),
            error => Self::new(ProblemKind::Conflict, crate::chain(&error)),
        }
    }
}
