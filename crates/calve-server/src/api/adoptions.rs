//! `/v1/adoptions`: machines that somebody else made get a lease.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use calve_core::Kind;
use calve_node::{DriverError, DriverErrorKind};
use calve_wire::api::{AdoptMachine, CreateMachine, MachineView, Problem, ProblemKind};
use calve_wire::machine::{MachineSpec, Network, Workload};

use super::extract::JsonBody;
use super::problem::{ApiError, ApiResult};
use super::{Api, Principal, check, machines};
use crate::chain;

/// Adopts a machine of a provider's, or a host, that nobody has: looks at it, writes a record and answers; it is this server's
/// once its state is `running`.
#[utoipa::path(post, path = "/v1/adoptions", request_body = AdoptMachine, responses(
    (status = 201, body = MachineView), (status = "default", body = Problem)))]
pub async fn adopt(
    State(api): State<Api>,
    by: Principal,
    JsonBody(request): JsonBody<AdoptMachine>,
) -> ApiResult<(StatusCode, Json<MachineView>)> {
    check::adoption(&request)?;
    if let Some(there) = machines::asked_before(&api, request.id).await {
        return Ok(there);
    }
    let AdoptMachine { id, name, provider, machine, host_key, ttl_ms, grace_ms } = request;
    let workload = Workload::Adopted { machine: machine.clone() };
    let mut spec = MachineSpec::new(Kind::System, workload);
    (spec.driver, spec.network) = (Some(provider), Network::Host);
    spec.place = Some(api.world.adoptable(provider, &machine, host_key.as_deref()).await?);
    machines::declare(&api, &by, CreateMachine { id, name, spec, ttl_ms, grace_ms, hold: false }).await
}

impl From<DriverError> for ApiError {
    fn from(error: DriverError) -> Self {
        let kind = match error.kind {
            DriverErrorKind::Unusable | DriverErrorKind::Failed => ProblemKind::Unusable,
            DriverErrorKind::NoSpace => ProblemKind::LimitReached,
        };
        let problem = Self::new(kind, chain(&error));
        match error.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}
