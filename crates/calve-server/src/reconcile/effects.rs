//! Everything that the loop can see and do in the world besides its own records. Two implementations: the real one
//! ([`crate::world`]) and the simulator's.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::plan::Ended;
use calve_core::{DriverName, MachineId, MachineName, Timestamp};
use calve_node::Found;
use calve_wire::agent::Status;
use calve_wire::event::What;
use calve_wire::record::MachineRecord;

/// Whether a driver can be used on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverState {
    /// The driver.
    pub driver: DriverName,
    /// Why it cannot be used, in one sentence with what mends it; none where it can.
    pub unusable: Option<String>,
}

/// What is known of a machine's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentReport {
    /// Whether the server hears it now.
    pub linked: bool,
    /// What it said last; none before it first spoke.
    pub status: Option<Status>,
    /// Whether the server has kept everything that the program wrote up to that status.
    pub log_complete: bool,
}

/// Why an effect did not happen, or is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EffectError {
    /// One sentence for people, with a hint where there is one.
    pub message: String,
    /// Whether a later try may succeed.
    pub retry: bool,
}

/// What the loop can see and do.
///
/// Guarantees: every effect may be repeated. `create` is keyed by the record's id and attempt; an error says nothing
/// about whether the machine exists: only `list` does. `destroy` accepts absence. `agents` gives what was heard last.
#[async_trait]
pub trait Effects: Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;

    /// Returns at `until` at the latest, or when something observable may have changed since it last returned (an agent
    /// spoke, a link broke, a driver's process ended, a driver became known). It is dropped and called again at will; no
    /// change is missed by that.
    async fn changed(&self, until: Timestamp);

    /// Which drivers this node has, as far as is known yet: a driver whose check takes long is left out until then.
    async fn drivers(&self) -> Vec<DriverState>;

    /// What each driver has on this node; an error says that nothing is known of that driver's machines.
    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>>;

    /// Whether lists of this driver that are asked for from now on show every machine: see [`calve_node::Driver::lists_all`].
    fn lists_all(&self, driver: DriverName) -> bool {
        let _ = driver;
        true
    }

    /// Whether a process of a listed machine is alive; otherwise only something to clean up is left. Asked, right after the
    /// list, of machines whose agents are not heard.
    fn is_alive(&self, driver: DriverName, found: Found) -> bool {
        let _ = (driver, found);
        true
    }

    /// How a listed machine that is not alive ended, where its driver knows.
    fn ended(&self, driver: DriverName, found: Found) -> Option<Ended> {
        let _ = (driver, found);
        None
    }

    /// What is known of the agents of linked machines.
    fn agents(&self) -> BTreeMap<MachineId, AgentReport>;

    /// Counts changes of what [`Self::agents`] gives: while this stays the same, so does that. None where nobody counts.
    fn agents_changes(&self) -> Option<u64> {
        None
    }

    /// Why the machine ended by itself, in one sentence, where its driver knows.
    fn end_note(&self, record: &MachineRecord) -> Option<String> {
        let _ = record;
        None
    }

    /// Makes the placed machine.
    async fn create(&self, record: &MachineRecord) -> Result<(), EffectError>;

    /// Keeps a link to the machine's agent from now on (repeated: nothing changes), until `destroy`.
    fn link(&self, record: &MachineRecord);

    /// Hands the workload to the agent.
    async fn start(&self, record: &MachineRecord) -> Result<(), EffectError>;

    /// Tells the agent, and the host-side supervisor where there is one, what remains of the lease.
    async fn set_lease(&self, record: &MachineRecord) -> Result<(), EffectError>;

    /// Tells the agent to end the program.
    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), EffectError>;

    /// Drops the link, ends and removes everything of the machine on its node. The log is kept.
    async fn destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError>;

    /// Removes the machine's log.
    async fn forget(&self, id: MachineId);

    /// Writes an event; `by` the loop.
    fn emit(&self, id: MachineId, name: &MachineName, what: What);

    /// Of these ended machines (with the time of their end), those whose `Stopped` should be among the events that are
    /// kept but is not, as the server died in between. Asked once, when the loop starts.
    async fn unannounced(&self, ended: &[(MachineId, Timestamp)]) -> Vec<MachineId> {
        let _ = ended;
        Vec::new()
    }
}
