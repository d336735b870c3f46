//! A machine as clients see it: its record together with what its agent said last.

use calve_core::State;
use calve_wire::agent::{Phase, Status};
use calve_wire::api::{Condition, MachineSummary, MachineView};
use calve_wire::machine::{PortMapping, Workload};
use calve_wire::record::MachineRecord;

use crate::reconcile::AgentReport;

/// What a list shows of an agent's last words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said {
    healthy: Option<bool>,
    backing_off: bool,
    starts: u32,
}

impl Said {
    /// Out of a status; nothing where there is none.
    pub fn of(status: Option<&Status>) -> Self {
        status.map_or(Self::default(), |status| Self {
            healthy: status.healthy,
            backing_off: status.phase == Phase::BackingOff,
            starts: status.starts,
        })
    }
}

/// As `ps` lists it.
pub fn summary(record: &MachineRecord, said: Said, published: &[PortMapping]) -> MachineSummary {
    let running = record.state == State::Running;
    MachineSummary {
        id: record.id,
        name: record.name.clone(),
        kind: record.spec.kind.to_string(),
        state: record.state,
        ready: said.healthy.filter(|_| running),
        condition: (running && said.backing_off).then_some(Condition::BackingOff),
        restarts: said.starts.saturating_sub(1),
        driver: record.driver,
        node: record.node.clone(),
        runs: runs(&record.spec.workload),
        created_unix_ms: record.created_unix_ms,
        deadline_unix_ms: record.deadline_unix_ms,
        exit: record.exit,
        ports: if published.is_empty() { record.spec.ports.clone() } else { published.to_vec() },
    }
}

/// In full.
pub fn view(record: &MachineRecord, report: Option<&AgentReport>, published: &[PortMapping]) -> MachineView {
    let status = report.and_then(|report| report.status.as_ref());
    let notes = status.map(|status| status.notes.clone()).unwrap_or_default();
    let unhealthy = status.and_then(|status| status.unhealthy_because.as_ref());
    let unhealthy = unhealthy.map(|reason| format!("the health check fails: {reason}"));
    MachineView {
        summary: summary(record, Said::of(status), published),
        spec: record.spec.clone(),
        stop_reason: record.stop.map(|stop| stop.reason),
        attempt: record.attempt,
        starts: status.map_or(0, |status| status.starts),
        linked: report.is_some_and(|report| report.linked),
        messages: record.message.iter().cloned().chain(notes).chain(unhealthy).collect(),
        state_since_unix_ms: record.state_since_unix_ms,
        bringing: None,
    }
}

fn runs(workload: &Workload) -> String {
    match workload {
        Workload::Program(program) => program.path.clone(),
        Workload::System { toplevel } => toplevel.to_string(),
        Workload::Base => "base".to_owned(),
        Workload::Adopted { machine } => format!("adopted {machine}"),
    }
}
