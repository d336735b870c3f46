//! The loop's eyes and hands: drivers, agents, store, ports, clock.

pub mod host;
mod leases;
mod preflight;
pub mod roots;
pub(crate) mod seed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::plan::Ended;
use calve_core::{DriverName, MachineId, MachineName, Timestamp};
use calve_nix::StorePath;
use calve_node::lazy::LazyDirs;
use calve_node::run_dir::RunDirs;
use calve_node::{Driver, DriverError, DriverErrorKind, Found, Order};
use calve_store::prune::PrunedPaths;
use calve_store::{Closure, Store, StoreError};
use calve_wire::agent::{Remaining, ToAgent};
use calve_wire::doctor::Check;
use calve_wire::event::{Event, What};
use calve_wire::machine::{MachineSpec, Place, PortMapping, StoreDelivery, Workload};
use calve_wire::record::MachineRecord;
use futures_util::future::join_all;
use memchr::memmem;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::agents::{Agents, LinkError};
use crate::cache::Embedded;
use crate::chain;
use crate::events::{Cursor, EventLog, time_of};
use crate::logs::Logs;
use crate::logs::console::Console;
use crate::ports::Ports;
use crate::reconcile::{AgentReport, DriverState, EffectError, Effects};
use crate::systems::Systems;
use leases::Leases;
use preflight::Preflights;
use roots::GcRoots;
use seed::Seeds;

/// The principal of what the loop does.
const LOOP: &str = "loop";

/// Everything besides the records.
pub struct World {
    drivers: BTreeMap<DriverName, Arc<dyn Driver>>,
    preflights: Preflights,
    store: Arc<Store>,
    roots: GcRoots,
    cache: Arc<Embedded>,
    agents: Arc<Agents>,
    logs: Arc<Logs>,
    ports: Ports,
    leases: Leases,
    seeds: Seeds,
    events: EventLog,
    lazy: LazyDirs,
    /// Gives machines at providers their systems; it works by this world.
    systems: OnceLock<Weak<Systems>>,
    run_dir: PathBuf,
    /// Counts what may have changed outside of the records.
    changes: watch::Sender<u64>,
    /// What the loop has seen of the changes.
    seen: Mutex<watch::Receiver<u64>>,
    _bell_task: AbortOnDropHandle<()>,
}

/// What a world is made of.
pub struct Parts {
    /// The node's drivers.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// The runtime directory, under which drivers keep what runs.
    pub run_dir: PathBuf,
    /// Closures.
    pub store: Arc<Store>,
    /// What keeps closures from Nix's garbage collector.
    pub roots: GcRoots,
    /// The server's cache.
    pub cache: Arc<Embedded>,
    /// Output of machines.
    pub logs: Arc<Logs>,
    /// What happened.
    pub events: EventLog,
}

impl World {
    /// A world; to be called within a tokio runtime.
    pub fn new(parts: Parts) -> Arc<Self> {
        let bell = Arc::new(Notify::new());
        let changes = watch::Sender::new(0);
        let agents = Agents::new(parts.logs.clone(), bell.clone());
        // The agents ring for one listener; the loop and every waiting request want to hear it.
        let rung = changes.clone();
        let bell_task = tokio::spawn(async move {
            loop {
                bell.notified().await;
                rung.send_modify(|count| *count += 1);
            }
        });
        Arc::new(Self {
            drivers: parts.drivers.iter().map(|driver| (driver.name(), driver.clone())).collect(),
            preflights: Preflights::new(parts.drivers, changes.clone()),
            ports: Ports::default(),
            leases: Leases::default(),
            seeds: Seeds::default(),
            store: parts.store,
            roots: parts.roots,
            cache: parts.cache,
            agents,
            logs: parts.logs,
            events: parts.events,
            lazy: LazyDirs::new(&parts.run_dir),
            systems: OnceLock::new(),
            run_dir: parts.run_dir,
            seen: Mutex::new(changes.subscribe()),
            changes,
            _bell_task: AbortOnDropHandle::new(bell_task),
        })
    }

    /// By whom machines at providers get their systems.
    pub fn switch_by(&self, systems: &Arc<Systems>) {
        // Once: there is one API over a world.
        let _ = self.systems.set(Arc::downgrade(systems));
    }

    /// The links to agents.
    pub fn agents(&self) -> &Arc<Agents> {
        &self.agents
    }

    /// Closures.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The server's cache.
    pub fn cache(&self) -> &Arc<Embedded> {
        &self.cache
    }

    /// The closure of these roots, where a process on this host serves it lazily.
    pub fn lazy_closure(&self, roots: &[StorePath]) -> Option<Closure> {
        self.lazy.of(roots).closure()
    }

    /// Counts what may have changed outside of the records, for waiting.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The console of a machine.
    pub fn console(&self, record: &MachineRecord) -> Console {
        let driver = record.driver.and_then(|name| self.drivers.get(&name));
        self.logs.console(record.id, driver.and_then(|driver| driver.console_log(record.id)))
    }

    /// A machine's published ports with the ports that the node chose.
    pub fn published(&self, id: MachineId) -> Vec<PortMapping> {
        self.ports.published(id)
    }

    /// Whether a driver can be used, known for sure: waits for its preflight, which may take seconds the first time.
    pub async fn driver_state(&self, driver: DriverName) -> DriverState {
        self.preflights.state(driver).await
    }

    /// Where a machine is that a provider has, and how large, if it may be adopted.
    pub async fn adoptable(
        &self,
        driver: DriverName,
        machine: &str,
        host_key: Option<&str>,
    ) -> Result<Place, DriverError> {
        let none =
            || DriverError::new(DriverErrorKind::Unusable, format!("this server has no driver {driver}"));
        self.drivers.get(&driver).ok_or_else(none)?.adoptable(machine, host_key).await
    }

    /// Why a machine's agent cannot be reached at the moment, where its driver knows.
    pub fn away(&self, record: &MachineRecord) -> Option<String> {
        self.drivers.get(&record.driver?)?.away(record.id)
    }

    /// The closures that are on their way to machines.
    pub fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// Every driver's preflight, done anew.
    pub async fn preflight(&self) -> Vec<Check> {
        self.preflights.run_all().await
    }

    /// Lets go of the store paths of all machines but these, at once or, in the cache, when that is opened.
    pub async fn reap_roots(&self, living: BTreeSet<MachineId>) {
        self.cache.set_living(living.clone());
        let lazy = self.lazy.clone();
        // Of processes that were killed; those that live look after themselves.
        tokio::task::spawn_blocking(move || lazy.reap());
        self.roots.reap(living).await;
    }

    /// Removes guests' images that none of the living machines needs; gives the bytes that were freed.
    pub async fn prune_images(&self, dir: PathBuf, living: Vec<MachineSpec>) -> Result<u64, StoreError> {
        let store = self.store.clone();
        let pruning = tokio::task::spawn_blocking(move || {
            // A closure that cannot be told any more has no image that could be made again: all are kept then.
            let keep: Result<Vec<_>, _> = living
                .iter()
                .map(|spec| store.closure(&roots(spec)).map(|closure| closure.digest()))
                .collect();
            calve_store::prune_images(&dir, &keep?)
        });
        pruning.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Removes store paths of the private store that none of the living machines needs and nobody has used for so long.
    pub async fn prune_store(
        &self,
        living: Vec<MachineSpec>,
        unused_for: Duration,
    ) -> Result<PrunedPaths, StoreError> {
        let store = self.store.clone();
        let keep: Vec<_> = living.iter().flat_map(roots).collect();
        let pruning = tokio::task::spawn_blocking(move || store.prune(&keep, unused_for));
        pruning.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn driver(&self, name: DriverName) -> Result<&Arc<dyn Driver>, EffectError> {
        self.drivers
            .get(&name)
            .ok_or_else(|| EffectError { message: format!("this server has no driver {name}"), retry: false })
    }

    fn seen(&self) -> MutexGuard<'_, watch::Receiver<u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, record: &MachineRecord) -> Result<(), EffectError> {
        if record.spec.ports.is_empty() {
            return Ok(());
        }
        match self.ports.publish(record.id, &record.spec.ports, &self.agents) {
            Ok(_) => Ok(()),
            Err(error) => Err(EffectError { message: chain(&error), retry: false }),
        }
    }

    fn tell(&self, id: MachineId, message: ToAgent) -> Result<(), EffectError> {
        self.agents.send(id, message).map_err(|error| link_error(&error))
    }

    async fn closure(&self, record: &MachineRecord) -> Result<Closure, EffectError> {
        let roots = roots(&record.spec);
        if record.spec.store == Some(StoreDelivery::Lazy) {
            let held = self.lazy.of(&roots).hold(placed(record)?, record.id);
            let gone = || EffectError {
                message: "the process that served the machine's closure lazily is gone; run it again"
                    .to_owned(),
                retry: false,
            };
            return held.ok().flatten().ok_or_else(gone);
        }
        let store = self.store.clone();
        let closure = tokio::task::spawn_blocking(move || store.closure(&roots)).await;
        let closure = closure.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        closure.map_err(|error| store_error(&error))
    }
}

/// The store paths whose closures a machine holds.
pub fn roots(spec: &MachineSpec) -> Vec<StorePath> {
    match &spec.workload {
        Workload::Program(program) => {
            let own = StorePath::split(&program.path).ok().map(|(path, _)| path);
            own.into_iter().chain(program.extra_roots.iter().chain(&program.work_tree).cloned()).collect()
        }
        Workload::System { toplevel } => vec![toplevel.clone()],
        Workload::Base | Workload::Adopted { .. } => Vec::new(),
    }
}

/// What remains of a record's lease at `now`.
pub fn remaining(record: &MachineRecord, now: Timestamp) -> Remaining {
    Remaining {
        until_deadline_ms: record.deadline_unix_ms.map(|deadline| deadline.saturating_sub(now.0)),
        grace_ms: record.grace_ms,
    }
}

/// The time.
pub fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

fn placed(record: &MachineRecord) -> Result<DriverName, EffectError> {
    let unplaced = || EffectError { message: "the machine has no driver yet".to_owned(), retry: true };
    record.driver.ok_or_else(unplaced)
}

fn link_error(error: &LinkError) -> EffectError {
    EffectError { message: error.to_string(), retry: *error != LinkError::BadToken }
}

fn driver_error(error: &DriverError) -> EffectError {
    let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    EffectError {
        message: format!("{}{hint}", chain(error)),
        retry: match error.kind {
            DriverErrorKind::Unusable => false,
            DriverErrorKind::NoSpace | DriverErrorKind::Failed => true,
        },
    }
}

fn store_error(error: &StoreError) -> EffectError {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    EffectError { message: format!("{}{hint}", chain(error)), retry: error.is_disk_full() }
}

#[async_trait]
impl Effects for World {
    fn now(&self) -> Timestamp {
        now()
    }

    async fn changed(&self, until: Timestamp) {
        // Waits on a copy, and marks the change as seen only when it returns: dropped in between, nothing is missed.
        let mut changes = self.seen().clone();
        if let Ok(Ok(())) = tokio::time::timeout(until.since(now()), changes.changed()).await {
            *self.seen() = changes;
        }
    }

    async fn drivers(&self) -> Vec<DriverState> {
        self.preflights.known()
    }

    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>> {
        let lists = self
            .drivers
            .iter()
            .map(async |(name, driver)| (*name, driver.list().await.map_err(|error| driver_error(&error))));
        join_all(lists).await.into_iter().collect()
    }

    fn lists_all(&self, driver: DriverName) -> bool {
        self.drivers.get(&driver).is_none_or(|driver| driver.lists_all())
    }

    fn is_alive(&self, driver: DriverName, found: Found) -> bool {
        let meta = RunDirs::new(&self.run_dir, driver).meta(found.id);
        meta.is_none_or(|meta| meta.attempt == found.attempt && meta.process.is_alive())
    }

    fn ended(&self, driver: DriverName, found: Found) -> Option<Ended> {
        let driver = self.drivers.get(&driver)?;
        // Before it is decided what became of the machine.
        if let Some(file) = driver.last_words(found.id) {
            self.agents.hear_last_words(found.id, &file);
        }
        driver.ended(found.id)
    }

    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        self.agents.reports()
    }

    fn agents_changes(&self) -> Option<u64> {
        Some(self.agents.changes())
    }

    async fn create(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let driver = self.driver(placed(record)?)?;
        let closure = self.closure(record).await?;
        self.publish(record)?;
        let order = Order {
            id: record.id,
            name: record.name.clone(),
            attempt: record.attempt,
            token: record.agent_token.clone(),
            spec: record.spec.clone(),
            closure,
            remaining: remaining(record, now()),
        };
        let runs = roots(&record.spec);
        let held =
            async { tokio::join!(self.roots.hold(&order, &self.store), self.cache.pin(record.id, &runs)) };
        let (created, _) = tokio::join!(driver.create(&order), held);
        created.map_err(|error| driver_error(&error))
    }

    fn link(&self, record: &MachineRecord) {
        let Ok(driver) = placed(record).and_then(|name| self.driver(name)) else { return };
        self.leases.set(record);
        let (leases, id) = (self.leases.clone(), record.id);
        let remaining = Arc::new(move || leases.remaining(id));
        let token = record.agent_token.clone();
        let linked = match driver.agents_dial() {
            true => {
                let key = record.agent_key().and_then(crate::joins::bytes);
                self.agents.expect_joined(id, token, key, remaining)
            }
            false => self.agents.link(id, driver.agent_socket(id), token, remaining),
        };
        if let Err(error) = linked {
            tracing::error!(machine = %id, %error, "a machine cannot be linked");
        }
        // Of a machine that an earlier server made, nobody listens on the ports any more.
        if let Err(error) = self.publish(record) {
            tracing::error!(machine = %id, %error, "a machine's ports are not published");
        }
    }

    async fn start(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let program = match &record.spec.workload {
            Workload::Program(program) => Some(program.clone()),
            Workload::System { .. } | Workload::Base | Workload::Adopted { .. } => None,
        };
        let (restart, health) = (record.spec.restart, record.spec.health.clone());
        let start = ToAgent::Start { program, restart, health };
        let driver = self.driver(placed(record)?)?;
        if let Workload::System { toplevel } = &record.spec.workload
            && driver.takes_closure_by_link()
        {
            let systems = self.systems.get().and_then(Weak::upgrade);
            let nobody = || EffectError { message: "nobody switches systems yet".to_owned(), retry: true };
            systems.ok_or_else(nobody)?.give(record, toplevel, now()).await?;
            return self.tell(record.id, start);
        }
        if driver.takes_closure_by_link() && !roots(&record.spec).is_empty() {
            let closure = self.closure(record).await?;
            self.seeds.begin(&self.agents, &self.store, record.id, closure, start);
            return Ok(());
        }
        self.tell(record.id, start)
    }

    async fn set_lease(&self, record: &MachineRecord) -> Result<(), EffectError> {
        self.leases.set(record);
        let remaining = remaining(record, now());
        let driver = self.driver(placed(record)?)?;
        driver.set_lease(record.id, remaining).await.map_err(|error| driver_error(&error))?;
        if !record.spec.runs().has_agent() {
            return Ok(());
        }
        match self.agents.send(record.id, ToAgent::Lease { remaining }) {
            // An agent that is not heard is told at its next welcome, which may be minutes away.
            Ok(()) | Err(LinkError::NotLinked) => Ok(()),
            Err(error) => Err(link_error(&error)),
        }
    }

    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), EffectError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.tell(id, ToAgent::Stop { grace_ms })
    }

    fn end_note(&self, record: &MachineRecord) -> Option<String> {
        let note = self.drivers.get(&record.driver?)?.end_note(record.id)?;
        note.lines().next().map(str::to_owned)
    }

    async fn destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError> {
        let driver = self.driver(driver)?;
        if let Some(console) = driver.console_log(id) {
            let logs = self.logs.clone();
            let kept = tokio::task::spawn_blocking(move || logs.keep_console(id, &console)).await;
            if let Err(error) = kept.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
                tracing::warn!(machine = %id, error = chain(&error), "a console was not kept");
            }
        }
        if let Some(file) = driver.last_words(id) {
            let agents = self.agents.clone();
            let heard = tokio::task::spawn_blocking(move || agents.hear_last_words(id, &file)).await;
            heard.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
        driver.destroy(id).await.map_err(|error| driver_error(&error))?;
        self.seeds.end(id);
        self.agents.unlink(id);
        self.lazy.release(driver.name(), id);
        self.roots.release(id).await;
        self.cache.unpin(id).await;
        self.ports.unpublish(id);
        self.leases.forget(id);
        let logs = self.logs.clone();
        let finished = tokio::task::spawn_blocking(move || logs.finish(id)).await;
        match finished {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(machine = %id, error = chain(&error), "a log was not completed"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(())
    }

    async fn forget(&self, id: MachineId) {
        self.agents.forget_last_words(id);
        let logs = self.logs.clone();
        match tokio::task::spawn_blocking(move || logs.remove(id)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(machine = %id, error = chain(&error), "a log was not removed"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn emit(&self, id: MachineId, name: &MachineName, what: What) {
        self.events.append(LOOP, id, name, what);
    }

    async fn unannounced(&self, ended: &[(MachineId, Timestamp)]) -> Vec<MachineId> {
        let mut cursor = self.events.after(0);
        let ended = ended.to_vec();
        let search = tokio::task::spawn_blocking(move || unannounced(&mut cursor, ended)).await;
        match search {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => {
                tracing::error!(%error, "the events cannot be read");
                Vec::new()
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Of the ended machines, those whose `Stopped` is not among the kept events though others of their time are.
fn unannounced(cursor: &mut Cursor, ended: Vec<(MachineId, Timestamp)>) -> std::io::Result<Vec<MachineId>> {
    let mut oldest = None;
    let mut announced = BTreeSet::new();
    loop {
        let lines = cursor.kept_lines()?;
        if lines.is_empty() {
            break;
        }
        oldest = oldest.or_else(|| time_of(lines.split(|byte| *byte == b'\n').next()?));
        // Most events tell something else; a hundred thousand of them are parsed as little as possible.
        let lines = lines.split(|byte| *byte == b'\n');
        for line in lines.filter(|line| memmem::find(line, b"\"stopped\"").is_some()) {
            let event: Event = serde_json::from_slice(line)?;
            if event.what == What::Stopped {
                announced.insert(event.machine);
            }
        }
    }
    let missing = ended
        .into_iter()
        .filter(|(id, at)| !announced.contains(id) && oldest.is_some_and(|oldest| oldest <= at.0));
    Ok(missing.map(|(id, _)| id).collect())
}
