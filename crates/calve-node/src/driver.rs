//! How a node makes machines: one trait, one file a driver, one conformance suite (`tests/conformance.rs`).

mod open;
pub mod qemu;
pub mod sandbox;

pub use open::{Host, open};

use std::path::PathBuf;

use async_trait::async_trait;
use calve_core::plan::Ended;
use calve_core::{DriverName, MachineId, MachineName};
use calve_store::Closure;
use calve_wire::agent::Remaining;
use calve_wire::doctor::Check;
use calve_wire::machine::{MachineSpec, Place};

/// Everything that a driver needs to make one machine; nothing is left to choose.
#[derive(Debug, Clone)]
pub struct Order {
    /// The machine.
    pub id: MachineId,
    /// Its name, which becomes its host name.
    pub name: MachineName,
    /// Which creation of it this is; a run directory of an earlier one is destroyed first.
    pub attempt: u32,
    /// The agent speaks only to who knows it: 32 hexadecimal digits.
    pub token: String,
    /// What it shall be.
    pub spec: MachineSpec,
    /// The closure that it sees under `/nix/store`.
    pub closure: Closure,
    /// The lease, enforced by the machine's own supervisor even where the server is dead.
    pub remaining: Remaining,
}

/// A machine that a driver found on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The machine.
    pub id: MachineId,
    /// Which creation of it.
    pub attempt: u32,
}

/// Makes machines in one way.
///
/// Guarantees: `create` is keyed by id and attempt: repeated, it changes nothing and succeeds. When it fails, nothing is
/// left. `destroy` accepts absence, and returns only once nothing of the machine is alive and its run directory is gone.
/// `list` shows every machine from the moment `create` returned until `destroy` returned, also to another process once
/// [`Driver::lists_all`] says so.
/// A machine outlives the process that created it, and is told its lease at creation, so that it ends in time all the same.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Its name.
    fn name(&self) -> DriverName;

    /// Checks what it needs; `Missing` in its area means that `create` would fail. May take seconds the first time.
    async fn preflight(&self) -> Vec<Check>;

    /// Makes the machine; on return its agent can be reached at [`Driver::agent_socket`].
    async fn create(&self, order: &Order) -> Result<(), DriverError>;

    /// Where the machine with this id at the driver's provider is, and how large, if it may be adopted: an order whose workload is
    /// [`calve_wire::machine::Workload::Adopted`] makes it this server's by [`Driver::create`]. Of a host that is reached over SSH,
    /// `host_key` says by which key it is known.
    async fn adoptable(&self, machine: &str, host_key: Option<&str>) -> Result<Place, DriverError> {
        let _ = host_key;
        let message = format!("the driver {} has no machine {machine} that could be adopted", self.name());
        Err(DriverError::new(DriverErrorKind::Unusable, message))
    }

    /// Every machine of this driver that has anything left on this node, alive or not.
    async fn list(&self) -> Result<Vec<Found>, DriverError>;

    /// Whether a list that is asked for from now on shows every machine, also what another process made or was making when it
    /// died. Where it does not, what is not listed may exist all the same.
    fn lists_all(&self) -> bool {
        true
    }

    /// Tells the host-side supervisor of the machine what remains of its lease; without one this does nothing, as the
    /// agent is told by the server.
    async fn set_lease(&self, id: MachineId, remaining: Remaining) -> Result<(), DriverError>;

    /// Ends and removes everything of the machine.
    async fn destroy(&self, id: MachineId) -> Result<(), DriverError>;

    /// The Unix socket on which the machine's agent listens.
    fn agent_socket(&self, id: MachineId) -> PathBuf;

    /// Why nobody is passed on to the machine's agent at the moment, in a sentence, where its driver stands in between and knows.
    fn away(&self, id: MachineId) -> Option<String> {
        let _ = id;
        None
    }

    /// Whether the agents of its machines dial the server instead: they are elsewhere, and [`Driver::agent_socket`] is
    /// never asked for.
    fn agents_dial(&self) -> bool {
        false
    }

    /// Whether its machines have no store of this host: closures are sent to them over the link.
    fn takes_closure_by_link(&self) -> bool {
        false
    }

    /// The console output of the machine (kernel and boot messages), where it has one.
    fn console_log(&self, id: MachineId) -> Option<PathBuf>;

    /// The file in which the agent of a machine that it ended by itself leaves what no server has heard
    /// ([`calve_wire::agent::LAST_WORDS_FILE`]), where its driver's machines have such a place.
    fn last_words(&self, id: MachineId) -> Option<PathBuf> {
        let _ = id;
        None
    }

    /// How a machine that is listed but not alive ended; none where the driver does not know.
    fn ended(&self, id: MachineId) -> Option<Ended> {
        let _ = id;
        None
    }

    /// Why the machine ended by itself, for people: a sentence, then what its console said last. None where it has not,
    /// or where the driver's machines leave no word.
    fn end_note(&self, id: MachineId) -> Option<String> {
        let _ = id;
        None
    }
}

/// Why a driver could not do it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DriverError {
    /// What kind of failure.
    pub kind: DriverErrorKind,
    /// One sentence for people.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What lies behind it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of driver failures; they say whether trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverErrorKind {
    /// The order cannot be done by this driver on this host; trying again does not help.
    Unusable,
    /// No space or other resource left; trying again later may help.
    NoSpace,
    /// Anything else; trying again may help.
    Failed,
}

impl DriverError {
    /// A failure of `kind` in one sentence.
    pub fn new(kind: DriverErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what lies behind it; a full disk sets the kind.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = source.into();
        let full = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(full, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
            self.kind = DriverErrorKind::NoSpace;
        }
        self.source = Some(source);
        self
    }
}
