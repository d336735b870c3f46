//! Machines as sandboxes on the node's own kernel. Each has one supervisor on the host, `calve-agent sandbox`, which makes
//! the namespaces and holds the lease; this driver starts it, and ends what it left.
//!
//! ```text
//!  driver                                   supervisor
//!    write sandbox.json, start ───────────▶   lock the run directory, make the sandbox, listen
//!    write meta.json ◀──────────── ready ──
//!    keep ────────────────────────────────▶   go on without the driver
//! ```
//! Until it hears `keep`, the supervisor ends with the driver: a machine that is not written down is not there. One more
//! supervisor stands by with a sandbox that is the same for every machine, and hears only the path of a run directory:
//! nothing of a machine is in it before, and it serves one.

mod end;
mod reaper;
mod start;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{DriverName, MachineId};
use calve_wire::agent::{LAST_WORDS_FILE, Remaining};
use calve_wire::doctor::Check;

use super::{Driver, DriverError, DriverErrorKind, Found, Order};
use crate::preflight;
use crate::run_dir::{Meta, RunDirs};
use reaper::Binary;
use start::Supervisor;

/// Time from a machine's creation to the start of the supervisor that stands by for the next one: a program that has just
/// been started shall not share the processors with what nobody waits for.
const STANDBY_PAUSE: Duration = Duration::from_millis(20);

/// Makes machines as sandboxes.
#[derive(Debug, Clone)]
pub struct SandboxDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dirs: RunDirs,
    agent_binary: PathBuf,
    reaper: reaper::Reaper,
    busy: Busy,
}

impl SandboxDriver {
    /// A driver whose run directories lie under `runtime_dir`, and whose supervisors are `agent_binary`.
    pub fn new(runtime_dir: &Path, agent_binary: PathBuf) -> Self {
        Self(Arc::new(Inner {
            dirs: RunDirs::new(runtime_dir, DriverName::Sandbox),
            agent_binary,
            reaper: reaper::Reaper::default(),
            busy: Busy::default(),
        }))
    }

    /// Runs `work`, which waits for processes and disks, beside the runtime, and alone for its machine.
    async fn blocking<T: Send + 'static>(
        &self,
        id: MachineId,
        what: What,
        work: impl FnOnce(&Inner) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = inner.busy.take(id, what);
            work(&inner)
        });
        done.await.expect("the work does not panic, and the runtime outlives who waits in it")
    }

    /// Sees to it that a supervisor stands by for the next machine, once the present one has had its turn.
    fn stand_by_soon(&self) {
        if !self.0.reaper.wants_standby() {
            return;
        }
        // A driver that goes meanwhile needs none any more.
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(STANDBY_PAUSE).await;
            tokio::task::spawn_blocking(move || {
                if let Some(inner) = inner.upgrade() {
                    inner.reaper.set_standby(inner.stand_by().ok());
                }
            });
        });
    }
}

#[async_trait]
impl Driver for SandboxDriver {
    fn name(&self) -> DriverName {
        DriverName::Sandbox
    }

    async fn preflight(&self) -> Vec<Check> {
        let agent_binary = self.0.agent_binary.clone();
        let checks = tokio::task::spawn_blocking(move || preflight::sandbox(&agent_binary));
        checks.await.expect("the checks do not panic, and the runtime outlives who waits in it")
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        let (id, order) = (order.id, order.clone());
        self.blocking(id, What::Create, move |inner| inner.create(&order)).await?;
        self.stand_by_soon();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let ids = self.0.dirs.list();
        let ids = ids.map_err(|error| failed("the run directories cannot be listed").caused_by(error))?;
        Ok(ids.into_iter().filter_map(|id| self.0.found(id)).collect())
    }

    async fn set_lease(&self, _: MachineId, _: Remaining) -> Result<(), DriverError> {
        // The supervisor is the agent, which the server tells.
        Ok(())
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        self.blocking(id, What::Destroy, move |inner| inner.destroy(id)).await
    }

    fn agent_socket(&self, id: MachineId) -> PathBuf {
        self.0.dirs.path(id).join("agent.sock")
    }

    fn console_log(&self, _: MachineId) -> Option<PathBuf> {
        None
    }

    fn last_words(&self, id: MachineId) -> Option<PathBuf> {
        Some(self.0.dirs.path(id).join(LAST_WORDS_FILE))
    }
}

impl Inner {
    /// What is there of a machine with a directory; none while it is being made by this process.
    fn found(&self, id: MachineId) -> Option<Found> {
        let attempt = |meta: Meta| Found { id, attempt: meta.attempt };
        let found = self.dirs.meta(id).map(attempt);
        if found.is_some() || self.busy.creates(id) {
            return found;
        }
        // Either it was written down since, or its creation was cut off: an attempt that nobody can have asked for.
        Some(self.dirs.meta(id).map_or(Found { id, attempt: 0 }, attempt))
    }

    fn create(&self, order: &Order) -> Result<(), DriverError> {
        if self.dirs.meta(order.id).is_some_and(|meta| meta.attempt == order.attempt) {
            return Ok(());
        }
        self.destroy(order.id)?;
        let standby = self.reaper.take_standby(&self.agent_binary);
        let stood_by = standby.is_some();
        let mut started = start::start(&self.dirs, &self.agent_binary, standby, order);
        if stood_by && started.is_err() {
            // It may have died meanwhile, as may its sandbox; what is wrong with the order, a new one says as well.
            self.destroy(order.id)?;
            started = start::start(&self.dirs, &self.agent_binary, None, order);
        }
        match started {
            Ok(supervisor) => {
                self.reaper.adopt(supervisor);
                Ok(())
            }
            Err(error) => {
                // What made it fail is what the caller must know; the next list shows what may be left.
                let _ = self.destroy(order.id);
                Err(error)
            }
        }
    }

    /// A supervisor that waits for a machine. Where there is none, the next machine gets one of its own, which says why.
    fn stand_by(&self) -> Result<(Supervisor, Binary), Box<dyn Error>> {
        let binary = Binary::at(&self.agent_binary)?;
        Ok((Supervisor::standing_by(&self.agent_binary, self.dirs.path_bytes())?, binary))
    }

    fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        let ended = end::end(&self.dirs, id);
        self.reaper.reap();
        ended
    }
}

fn failed(message: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Failed, message)
}

/// What is being done to machines, each by one thread at a time.
#[derive(Debug, Default)]
struct Busy {
    machines: Mutex<HashMap<MachineId, What>>,
    freed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Create,
    Destroy,
}

impl Busy {
    fn take(&self, id: MachineId, what: What) -> Turn<'_> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match machines.entry(id) {
                Entry::Vacant(vacant) => {
                    vacant.insert(what);
                    return Turn { busy: self, id };
                }
                Entry::Occupied(_) => {}
            }
            machines = self.freed.wait(machines).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn creates(&self, id: MachineId) -> bool {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.get(&id) == Some(&What::Create)
    }
}

struct Turn<'a> {
    busy: &'a Busy,
    id: MachineId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy.machines.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.busy.freed.notify_all();
    }
}
