//! How exactly leases end: the server's own loop over a hundred thousand machines whose driver does nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use calve_core::{DriverName, Kind, MachineId, MachineName, Timestamp};
use calve_node::Found;
use calve_server::reconcile::records::View;
use calve_server::reconcile::{self, AgentReport, DriverState, EffectError, Effects};
use calve_server::state::State;
use calve_server::state::memory::MemoryState;
use calve_server::world::now;
use calve_wire::agent::{Phase, Status};
use calve_wire::event::What;
use calve_wire::machine::{MachineSpec, Workload};
use calve_wire::record::MachineRecord;
use tokio::sync::Notify;

use crate::Effort;
use crate::records;
use crate::table::Table;

/// Leases, as promised.
const LEASES: u64 = 100_000;
/// Time for the loop to look at all of them first.
const WARM_UP: Duration = Duration::from_secs(20);
/// The promise.
const LATE_MAX_MS: f64 = 1000.0;

/// Machines that run until they are destroyed, which is written down.
struct Fleet {
    found: Mutex<BTreeMap<MachineId, Found>>,
    reports: BTreeMap<MachineId, AgentReport>,
    destroyed: Mutex<BTreeMap<MachineId, Timestamp>>,
    all_gone: Notify,
    expected: usize,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Effects for Fleet {
    fn now(&self) -> Timestamp {
        now()
    }

    async fn changed(&self, until: Timestamp) {
        tokio::time::sleep(until.since(now())).await;
    }

    async fn drivers(&self) -> Vec<DriverState> {
        vec![DriverState { driver: DriverName::Sandbox, unusable: None }]
    }

    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>> {
        BTreeMap::from([(DriverName::Sandbox, Ok(held(&self.found).values().copied().collect()))])
    }

    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        self.reports.clone()
    }

    fn agents_changes(&self) -> Option<u64> {
        Some(1)
    }

    async fn create(&self, _: &MachineRecord) -> Result<(), EffectError> {
        Ok(())
    }

    fn link(&self, _: &MachineRecord) {}

    async fn start(&self, _: &MachineRecord) -> Result<(), EffectError> {
        Ok(())
    }

    async fn set_lease(&self, _: &MachineRecord) -> Result<(), EffectError> {
        Ok(())
    }

    async fn stop(&self, _: MachineId, _: Duration) -> Result<(), EffectError> {
        Ok(())
    }

    async fn destroy(&self, id: MachineId, _: DriverName) -> Result<(), EffectError> {
        held(&self.found).remove(&id);
        let mut destroyed = held(&self.destroyed);
        destroyed.entry(id).or_insert_with(now);
        if destroyed.len() == self.expected {
            self.all_gone.notify_one();
        }
        Ok(())
    }

    async fn forget(&self, _: MachineId) {}

    fn emit(&self, _: MachineId, _: &MachineName, _: What) {}
}

/// Ends one lease in ten of them within the time, evenly, while the others live on.
pub async fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let span = Duration::from_secs(if effort.machines < 1000 { 20 } else { 60 });
    let state: Arc<dyn State> = Arc::new(MemoryState::default());
    let begin = now().after(WARM_UP);
    let (mut found, mut reports, mut deadlines) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let status = Status { phase: Phase::Running, starts: 1, ..Status::waiting() };
    let ending = LEASES / 10;
    for n in 0..LEASES {
        let id = MachineId::new(Timestamp(n), 1);
        let deadline = match n % 10 {
            0 => begin.after(span.mul_f64((n / 10) as f64 / ending as f64)),
            _ => begin.after(Duration::from_secs(24 * 3600)),
        };
        if n % 10 == 0 {
            deadlines.insert(id, deadline);
        }
        let spec = MachineSpec::new(Kind::System, Workload::Base);
        let record = records::running(id, &format!("lease-{n}"), spec, DriverName::Sandbox, 1)?;
        let record = MachineRecord { deadline_unix_ms: Some(deadline.0), ..record };
        records::write(&*state, &record).await?;
        found.insert(id, Found { id, attempt: 1 });
        reports.insert(id, AgentReport { linked: true, status: Some(status.clone()), log_complete: true });
    }
    let fleet = Arc::new(Fleet {
        found: Mutex::new(found),
        reports,
        destroyed: Mutex::default(),
        all_gone: Notify::new(),
        expected: deadlines.len(),
    });
    let looping = tokio::spawn(reconcile::run(state, View::default(), fleet.clone(), std::future::pending()));
    let patience = WARM_UP + span * 3;
    let gone = tokio::time::timeout(patience, fleet.all_gone.notified()).await;
    looping.abort();
    let destroyed = held(&fleet.destroyed).clone();
    gone.with_context(|| format!("{} of {} leases had ended", destroyed.len(), deadlines.len()))?;
    anyhow::ensure!(
        destroyed.keys().eq(deadlines.keys()),
        "a machine was destroyed whose lease had not ended"
    );
    let mut late: Vec<f64> = destroyed.iter().map(|(id, at)| at.0 as f64 - deadlines[id].0 as f64).collect();
    late.sort_by(f64::total_cmp);
    anyhow::ensure!(late[0] >= 0.0, "a lease ended {} ms too early", -late[0]);
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    let what = "a lease's end to its destroy, 100,000 leases";
    table.note(&format!("{what}, median"), format!("{:.0} ms", at(0.5)));
    table.limit(&format!("{what}, p99"), format!("{:.0} ms", at(0.99)), at(0.99), LATE_MAX_MS, "ms");
    Ok(())
}
