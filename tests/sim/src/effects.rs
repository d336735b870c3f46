//! The loop's effects on the simulated host and provider.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{DriverName, Kind, MachineId, MachineName, Timestamp};
use calve_node::{Driver, DriverError, DriverErrorKind, Found, Order};
use calve_provider::mark::OwnerKey;
use calve_server::cloud::{CloudDriver, Door};
use calve_server::reconcile::{AgentReport, DriverState, EffectError, Effects};
use calve_server::systems::Systems;
use calve_wire::agent::Remaining;
use calve_wire::event::What;
use calve_wire::machine::Workload;
use calve_wire::record::MachineRecord;

use crate::aim::{How, When, Which};
use crate::faults::Fault;
use crate::host::{Ms, Vm};
use crate::link::Link;
use crate::provider::SimProvider;
use crate::simulation::Plant;
use crate::world::{Inner, World, speaking};

/// An effect that is under way.
struct UnderWay<'a> {
    effects: &'a SimEffects,
    id: MachineId,
}

impl UnderWay<'_> {
    fn ended(self, result: &Result<(), EffectError>) {
        let id = self.id;
        self.effects.world.say(|| format!("  of {id}: {}", if result.is_ok() { "done" } else { "failed" }));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut inner = self.effects.world.inner();
        if inner.under_way.get(&self.id) == Some(&self.effects.generation) {
            inner.under_way.remove(&self.id);
        }
    }
}

/// The effects of one server.
pub struct SimEffects {
    world: Arc<World>,
    generation: u32,
    cloud: CloudDriver,
    /// In worlds in which somebody switches systems.
    systems: Option<Arc<Systems>>,
}

/// The key that signs the machines of every simulated server; in a file, as the server has it. All processes of a user share one,
/// as nobody would remove it behind the last world.
fn key_file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let user = std::fs::metadata("/proc/self").expect("this process is there").uid();
        let mut made = tempfile::NamedTempFile::new().expect("a file");
        made.write_all("07".repeat(32).as_bytes()).expect("written");
        let file = std::env::temp_dir().join(format!("calve-sim-{user}.key"));
        made.persist(&file).expect("it has its name");
        debug_assert!(OwnerKey::load_or_make(&file).is_ok());
        file
    })
}

impl SimEffects {
    pub fn new(world: Arc<World>, generation: u32, systems: Option<Arc<Systems>>) -> Self {
        let provider = SimProvider { world: world.clone(), generation };
        let door = Door { address: "calve.example.org:7077".to_owned(), fingerprint: "0a".repeat(32) };
        let door = Arc::new(OnceLock::from(door));
        let clock = world.clone();
        let cloud =
            CloudDriver::new(DriverName::DigitalOcean, Ok(Arc::new(provider)), key_file().to_owned(), door)
                .with_clock(Arc::new(move || clock.timestamp()));
        Self { world, generation, cloud, systems }
    }

    /// A moment of an effect: the server may die, time may pass, and it may fail; on purpose too.
    async fn moment(&self, which: Which, when: When, retry: bool) -> Result<(), EffectError> {
        if self.world.hits(which, when, How::Crashes) {
            self.world.kill("server crashes on purpose");
        }
        self.world.point(self.generation).await;
        if self.world.hits(which, when, How::Fails) {
            return Err(EffectError { message: "on purpose".to_owned(), retry });
        }
        self.pass(retry).await
    }

    /// Whether the server dies on purpose in something that does not wait; it does nothing more then.
    fn crashes_in(&self, which: Which, when: When) -> bool {
        let crashes = self.world.hits(which, when, How::Crashes);
        if crashes {
            self.world.kill("server crashes on purpose");
        }
        crashes
    }

    /// A moment at which time may pass, and what is done may fail.
    async fn pass(&self, retry: bool) -> Result<(), EffectError> {
        let (pause, fails) = {
            let mut inner = self.world.inner();
            let slow = inner.faults.happens(Fault::Slow);
            let pause = if slow { inner.rng.range(100, 20_000) } else { inner.rng.range(0, 10) };
            (pause, inner.faults.happens(Fault::Effect))
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.world.point(self.generation).await;
        if fails {
            return Err(EffectError { message: "seeded".to_owned(), retry });
        }
        Ok(())
    }

    /// Takes note of an effect; ended, or dropped by the loop, the guard takes note of that.
    fn began(&self, id: MachineId, what: &str) -> UnderWay<'_> {
        self.world.say(|| format!("{what} {id}"));
        let mut inner = self.world.inner();
        inner.effects += 1;
        let doubled = inner.under_way.insert(id, self.generation).is_some();
        drop(inner);
        if doubled {
            self.world.violation(format!("two effects on {id} at once"));
        }
        UnderWay { effects: self, id }
    }

    fn clear(&self, key: (DriverName, MachineId)) {
        self.world.inner().host.remove(&key);
    }

    /// The record's lease in the world's time.
    fn lease_of(&self, record: &MachineRecord) -> (Option<Ms>, u64) {
        (self.world.in_world_time(record.deadline_unix_ms), record.grace_ms)
    }

    fn remaining(&self, record: &MachineRecord) -> Remaining {
        let now = self.world.timestamp().0;
        let until_deadline_ms = record.deadline_unix_ms.map(|deadline| deadline.saturating_sub(now));
        Remaining { until_deadline_ms, grace_ms: record.grace_ms }
    }

    async fn do_create(&self, record: &MachineRecord, driver: DriverName) -> Result<(), EffectError> {
        if driver == DriverName::DigitalOcean {
            let order = Order {
                id: record.id,
                name: record.name.clone(),
                attempt: record.attempt,
                token: record.agent_token.clone(),
                spec: record.spec.clone(),
                closure: calve_store::Closure::default(),
                remaining: self.remaining(record),
            };
            return self.cloud.create(&order).await.map_err(|error| effect_error(&error));
        }
        let retry = !self.world.happens(Fault::ForGood);
        self.moment(Which::Create, When::Before, retry).await?;
        if let Workload::Adopted { machine } = &record.spec.workload {
            self.adopt_host(record, machine)?;
            return self.moment(Which::Create, When::After, retry).await;
        }
        let key = (driver, record.id);
        let now = self.world.now();
        {
            let mut inner = self.world.inner();
            if inner.host.get(&key).is_some_and(|vm| vm.complete && vm.attempt == record.attempt) {
                return Ok(());
            }
            let partial = Vm::partial(record.attempt, now, &mut inner.rng);
            inner.host.insert(key, partial);
        }
        self.moment(Which::Create, When::Within, retry).await.inspect_err(|_| self.clear(key))?;
        let lease = self.lease_of(record);
        let now = self.world.now();
        {
            let mut inner = self.world.inner();
            let restarts = record.spec.kind == Kind::Service;
            let vm = Vm::new(record.attempt, restarts, lease, now, &mut inner.rng);
            inner.host.insert(key, vm);
        }
        self.world.touched.notify_one();
        self.moment(Which::Create, When::After, retry).await
    }

    /// Notes that a host is a machine; one that another machine is already is refused.
    fn adopt_host(&self, record: &MachineRecord, host: &str) -> Result<(), EffectError> {
        let now = self.world.now();
        let mut inner = self.world.inner();
        let Inner { host: vms, rng, .. } = &mut *inner;
        let taken = |((_, id), vm): (&(DriverName, MachineId), &Vm)| {
            *id != record.id && vm.adopted.as_deref() == Some(host)
        };
        if vms.iter().any(taken) {
            return Err(EffectError { message: "adopted already".to_owned(), retry: false });
        }
        let key = (DriverName::Ssh, record.id);
        vms.entry(key).or_insert_with(|| Vm::adopted(host, record.attempt, now, rng)).attempt =
            record.attempt;
        drop(inner);
        self.world.touched.notify_one();
        Ok(())
    }

    async fn do_destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError> {
        if driver == DriverName::DigitalOcean {
            self.cloud.destroy(id).await.map_err(|error| effect_error(&error))?;
            self.world.inner().links.remove(&id);
            return Ok(());
        }
        self.moment(Which::Destroy, When::Before, true).await?;
        let key = (driver, id);
        let hides = self.world.inner().plant == Plant::DestroyHides;
        if let Some(vm) = self.world.inner().host.get_mut(&key) {
            vm.alive = hides && vm.alive;
        }
        self.world.inner().links.remove(&id);
        self.moment(Which::Destroy, When::Within, true).await?;
        if !hides {
            self.world.inner().host.remove(&key);
        }
        self.moment(Which::Destroy, When::After, true).await
    }

    /// Does something with a machine that can be talked to.
    async fn talk(
        &self,
        which: Which,
        id: MachineId,
        what: impl Fn(&mut Vm, Ms, &mut crate::rng::Rng),
    ) -> Result<(), EffectError> {
        self.moment(which, When::Before, true).await?;
        let now = self.world.now();
        let times = 1 + u32::from(self.world.hits(which, When::Within, How::Repeats));
        let heard = {
            let mut inner = self.world.inner();
            let linked = inner.links.get(&id).is_some_and(|link| link.linked);
            let Inner { host, account, rng, .. } = &mut *inner;
            let vm = speaking(host, account, id, now);
            let vm = vm.filter(|_| linked);
            vm.map(|vm| (0..times).for_each(|_| what(vm, now, rng))).is_some()
        };
        self.world.touched.notify_one();
        if !heard {
            return Err(EffectError { message: "not linked".to_owned(), retry: true });
        }
        self.moment(which, When::Within, true).await?;
        self.moment(which, When::After, true).await
    }

    async fn list_host(&self, driver: DriverName) -> Result<Vec<Found>, EffectError> {
        if driver == DriverName::DigitalOcean {
            return self.cloud.list().await.map_err(|error| effect_error(&error));
        }
        let mut inner = self.world.inner();
        let hides = inner.plant == Plant::ListHidesLiving;
        let found = inner.host.iter().filter(|((d, _), vm)| *d == driver && !(hides && vm.alive));
        let found = found.map(|((_, id), vm)| Found { id: *id, attempt: vm.attempt }).collect();
        if inner.faults.happens(Fault::List) {
            return Err(EffectError { message: "seeded".to_owned(), retry: true });
        }
        Ok(found)
    }
}

fn effect_error(error: &DriverError) -> EffectError {
    let retry = error.kind != DriverErrorKind::Unusable;
    EffectError { message: error.to_string(), retry }
}

#[async_trait]
impl Effects for SimEffects {
    fn now(&self) -> Timestamp {
        self.world.timestamp()
    }

    async fn changed(&self, until: Timestamp) {
        let pause = Duration::from_millis(until.0.saturating_sub(self.world.timestamp().0));
        tokio::select! {
            biased;
            () = self.world.bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    async fn drivers(&self) -> Vec<DriverState> {
        let known = DriverName::ALL.into_iter().filter(|_| !self.world.happens(Fault::DriverUnknown));
        let known: Vec<_> = known.collect();
        self.world.point(self.generation).await;
        known.into_iter().map(|driver| DriverState { driver, unusable: None }).collect()
    }

    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>> {
        let _ = self.pass(true).await;
        let mut lists = BTreeMap::new();
        for driver in DriverName::ALL {
            lists.insert(driver, self.list_host(driver).await);
        }
        let _ = self.pass(true).await;
        lists
    }

    fn lists_all(&self, driver: DriverName) -> bool {
        driver != DriverName::DigitalOcean || self.cloud.lists_all()
    }

    fn is_alive(&self, driver: DriverName, found: Found) -> bool {
        // Of machines at a provider nothing is known but that they are listed.
        // A host that was adopted is in the book until it is let go of.
        matches!(driver, DriverName::DigitalOcean | DriverName::Ssh)
            || self.world.inner().host.get(&(driver, found.id)).is_some_and(|vm| vm.alive)
    }

    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        self.world.inner().links.iter().map(|(id, link)| (*id, link.report())).collect()
    }

    async fn create(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let driver = record.driver.expect("a machine is placed before it is created");
        let under_way = self.began(record.id, "create");
        let mut result = self.do_create(record, driver).await;
        if self.world.hits(Which::Create, When::Within, How::Repeats) {
            result = self.do_create(record, driver).await;
        }
        under_way.ended(&result);
        result
    }

    fn link(&self, record: &MachineRecord) {
        let (now, lease) = (self.world.now(), self.lease_of(record));
        if self.crashes_in(Which::Link, When::Before) {
            return;
        }
        if self.world.hits(Which::Link, When::Within, How::Repeats) {
            self.link(record);
        }
        {
            let mut inner = self.world.inner();
            let up_at = now + inner.rng.range(0, 50);
            inner.links.entry(record.id).or_insert(Link { up_at, lease, ..Link::default() });
        }
        self.world.say(|| format!("link {}", record.id));
        self.world.touched.notify_one();
        let _ = self.crashes_in(Which::Link, When::After);
    }

    async fn start(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let under_way = self.began(record.id, "start");
        let given = match (&record.spec.workload, &self.systems) {
            (Workload::System { toplevel }, Some(systems)) => {
                systems.give(record, toplevel, self.world.timestamp()).await
            }
            _ => Ok(()),
        };
        let result = match given {
            Ok(()) => self.talk(Which::Start, record.id, |vm, now, rng| vm.start(now, rng)).await,
            not_yet => not_yet,
        };
        under_way.ended(&result);
        result
    }

    async fn set_lease(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let under_way = self.began(record.id, "set lease");
        let lease = self.lease_of(record);
        if let Some(link) = self.world.inner().links.get_mut(&record.id) {
            link.lease = lease;
        }
        let written = match record.driver {
            Some(DriverName::DigitalOcean) => {
                let remaining = self.remaining(record);
                self.cloud.set_lease(record.id, remaining).await.map_err(|error| effect_error(&error))
            }
            Some(
                DriverName::Sandbox
                | DriverName::Qemu
                | DriverName::Proxmox
                | DriverName::Ssh
                | DriverName::Exec,
            )
            | None => Ok(()),
        };
        let adopted = matches!(record.spec.workload, Workload::Adopted { .. });
        let result = match written {
            Ok(()) if adopted => Ok(()),
            Ok(()) => self.talk(Which::SetLease, record.id, |vm, now, _| vm.tell_lease(lease, now)).await,
            Err(error) => Err(error),
        };
        under_way.ended(&result);
        result
    }

    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), EffectError> {
        let under_way = self.began(id, "stop");
        self.world.check_may_end(id, "told to stop");
        if self.world.inner().host.contains_key(&(DriverName::Ssh, id)) {
            self.world.violation(format!("{id}, a host that was adopted, was told to stop"));
        }
        let result =
            self.talk(Which::Stop, id, |vm, now, rng| vm.stop(grace.as_millis() as u64, now, rng)).await;
        under_way.ended(&result);
        result
    }

    async fn destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError> {
        let under_way = self.began(id, "destroy");
        let ends = {
            let inner = self.world.inner();
            // A host is in use once it is said to run: its agent is also called where its adoption failed for good.
            let mut said = inner.events.get(&id).into_iter().flatten();
            let runs = said.any(|what| matches!(what, What::State { state: calve_core::State::Running, .. }));
            inner.host.get(&(driver, id)).is_some_and(|vm| vm.works() || vm.adopted.is_some() && runs)
        };
        if ends {
            self.world.check_may_end(id, "destroyed");
        }
        let mut result = self.do_destroy(id, driver).await;
        if self.world.hits(Which::Destroy, When::Within, How::Repeats) {
            result = self.do_destroy(id, driver).await;
        }
        under_way.ended(&result);
        result
    }

    async fn forget(&self, id: MachineId) {
        let under_way = self.began(id, "forget");
        let times = 1 + u32::from(self.world.hits(Which::Forget, When::Within, How::Repeats));
        for _ in 0..times {
            // It has no answer that could be bad.
            for when in [When::Before, When::Within, When::After] {
                let _ = self.crashes_in(Which::Forget, when);
                self.world.point(self.generation).await;
            }
        }
        under_way.ended(&Ok(()));
    }

    fn emit(&self, id: MachineId, name: &MachineName, what: What) {
        self.world.say(|| format!("event {name} {what:?}"));
        self.world.check_event(id, &what);
        let twice = what == What::Stopped && self.world.inner().plant == Plant::StoppedTwice;
        self.world
            .inner()
            .events
            .entry(id)
            .or_default()
            .extend(std::iter::repeat_n(what, 1 + usize::from(twice)));
    }

    async fn unannounced(&self, ended: &[(MachineId, Timestamp)]) -> Vec<MachineId> {
        let inner = self.world.inner();
        let known =
            |id: &MachineId| inner.events.get(id).is_some_and(|events| events.contains(&What::Stopped));
        let none = inner.plant == Plant::NothingUnannounced;
        ended.iter().map(|(id, _)| *id).filter(|id| !none && !known(id)).collect()
    }
}
