//! A machine as clients see it: its record together with what its agent said last.

use calve_core::State;
use calve_wire::api::{MachineSummary, MachineView};
use calve_wire::machine::{PortMapping, Workload};
use calve_wire::record::MachineRecord;

use crate::reconcile::AgentReport;

/// As `ps` lists it.
pub fn summary(
    record: &MachineRecord,
    report: Option<&AgentReport>,
    published: &[PortMapping],
) -> MachineSummary {
    let status = report.and_then(|report| report.status.as_ref());
    MachineSummary {
        id: record.id,
        name: record.name.clone(),
        kind: record.spec.kind.to_string(),
        state: record.state,
        ready: status.filter(|_| record.state == State::Running).and_then(|status| status.healthy),
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
    MachineView {
        summary: summary(record, report, published),
        spec: record.spec.clone(),
        stop_reason: record.stop.map(|stop| stop.reason),
        attempt: record.attempt,
        starts: status.map_or(0, |status| status.starts),
        linked: report.is_some_and(|report| report.linked),
        messages: record.message.iter().cloned().chain(notes).collect(),
        state_since_unix_ms: record.state_since_unix_ms,
    }
}

fn runs(workload: &Workload) -> String {
    match workload {
        Workload::Program(program) => program.path.clone(),
        Workload::System { toplevel } => toplevel.to_string(),
        Workload::Base => "base".to_owned(),
    }
}
