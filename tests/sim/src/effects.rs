//! The loop's effects on the simulated host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{DriverName, Kind, MachineId, MachineName, Timestamp};
use calve_node::Found;
use calve_server::reconcile::{AgentReport, DriverState, EffectError, Effects};
use calve_wire::event::What;
use calve_wire::record::MachineRecord;

use crate::host::{Ms, Vm};
use crate::simulation::Plant;
use crate::world::{Link, World};

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
        if inner.generation == self.effects.generation {
            inner.under_way.remove(&self.id);
        }
    }
}

/// The effects of one server.
pub struct SimEffects {
    pub world: Arc<World>,
    pub generation: u32,
}

impl SimEffects {
    /// A moment of an effect: the server may die, time may pass, and it may fail.
    async fn moment(&self, retry: bool) -> Result<(), EffectError> {
        self.world.point(self.generation).await;
        let (pause, fails) = {
            let mut inner = self.world.inner();
            let (slow, fails) = (inner.chances.slow, inner.chances.effect_fails);
            let slow = inner.rng.chance(slow);
            let pause = if slow { inner.rng.range(100, 20_000) } else { inner.rng.range(0, 10) };
            (pause, inner.rng.chance(fails))
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

    async fn do_create(&self, record: &MachineRecord, driver: DriverName) -> Result<(), EffectError> {
        let retry = !self.world.inner().rng.chance(100);
        self.moment(retry).await?;
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
        self.moment(retry).await.inspect_err(|_| self.clear(key))?;
        {
            let mut inner = self.world.inner();
            let lease = lease_of(record);
            let restarts = record.spec.kind == Kind::Service;
            let vm = Vm::new(record.attempt, restarts, lease, self.world.now(), &mut inner.rng);
            inner.host.insert(key, vm);
        }
        self.world.touched.notify_one();
        self.moment(retry).await
    }

    async fn do_destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError> {
        self.moment(true).await?;
        let key = (driver, id);
        let hides = self.world.inner().plant == Plant::DestroyHides;
        if let Some(vm) = self.world.inner().host.get_mut(&key) {
            vm.alive = hides && vm.alive;
        }
        self.world.inner().links.remove(&id);
        self.moment(true).await?;
        if !hides {
            self.world.inner().host.remove(&key);
        }
        self.moment(true).await
    }

    /// Does something with a machine that can be talked to.
    async fn talk(
        &self,
        id: MachineId,
        what: impl FnOnce(&mut Vm, Ms, &mut crate::rng::Rng),
    ) -> Result<(), EffectError> {
        self.moment(true).await?;
        let now = self.world.now();
        let heard = {
            let mut inner = self.world.inner();
            let linked = inner.links.get(&id).is_some_and(|link| link.linked);
            let crate::world::Inner { host, rng, .. } = &mut *inner;
            let vm = host.iter_mut().find(|((_, vm_id), vm)| *vm_id == id && vm.speaks(now));
            vm.filter(|_| linked).map(|(_, vm)| what(vm, now, rng)).is_some()
        };
        self.world.touched.notify_one();
        if !heard {
            return Err(EffectError { message: "not linked".to_owned(), retry: true });
        }
        self.moment(true).await
    }
}

fn lease_of(record: &MachineRecord) -> (Option<Ms>, u64) {
    (record.deadline_unix_ms, record.grace_ms)
}

#[async_trait]
impl Effects for SimEffects {
    fn now(&self) -> Timestamp {
        self.world.timestamp()
    }

    async fn changed(&self, until: Timestamp) {
        let pause = Duration::from_millis(until.0.saturating_sub(self.world.now()));
        tokio::select! {
            biased;
            () = self.world.bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    async fn drivers(&self) -> Vec<DriverState> {
        let known = {
            let mut inner = self.world.inner();
            DriverName::ALL.into_iter().filter(|_| !inner.rng.chance(100)).collect::<Vec<_>>()
        };
        self.world.point(self.generation).await;
        known.into_iter().map(|driver| DriverState { driver, unusable: None }).collect()
    }

    async fn list(&self) -> BTreeMap<DriverName, Result<Vec<Found>, EffectError>> {
        let _ = self.moment(true).await;
        let mut lists = BTreeMap::new();
        {
            let mut inner = self.world.inner();
            let fails = inner.chances.list_fails;
            let hides = inner.plant == Plant::ListHidesLiving;
            for driver in DriverName::ALL {
                let found = inner.host.iter().filter(|((d, _), vm)| *d == driver && !(hides && vm.alive));
                let found = found.map(|((_, id), vm)| Found { id: *id, attempt: vm.attempt }).collect();
                let error = EffectError { message: "seeded".to_owned(), retry: true };
                let result = if inner.rng.chance(fails) { Err(error) } else { Ok(found) };
                lists.insert(driver, result);
            }
        }
        let _ = self.moment(true).await;
        lists
    }

    fn is_alive(&self, driver: DriverName, found: Found) -> bool {
        self.world.inner().host.get(&(driver, found.id)).is_some_and(|vm| vm.alive)
    }

    fn agents(&self) -> BTreeMap<MachineId, AgentReport> {
        let inner = self.world.inner();
        let report = |link: &Link| AgentReport {
            linked: link.linked,
            status: link.heard.clone(),
            log_complete: link.log_complete,
        };
        inner.links.iter().map(|(id, link)| (*id, report(link))).collect()
    }

    async fn create(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let driver = record.driver.expect("a machine is placed before it is created");
        let under_way = self.began(record.id, "create");
        let result = self.do_create(record, driver).await;
        under_way.ended(&result);
        result
    }

    fn link(&self, record: &MachineRecord) {
        let now = self.world.now();
        {
            let mut inner = self.world.inner();
            let up_at = now + inner.rng.range(0, 50);
            inner.links.entry(record.id).or_insert(Link {
                up_at,
                lease: lease_of(record),
                ..Link::default()
            });
        }
        self.world.say(|| format!("link {}", record.id));
        self.world.touched.notify_one();
    }

    async fn start(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let under_way = self.began(record.id, "start");
        let result = self.talk(record.id, |vm, now, rng| vm.start(now, rng)).await;
        under_way.ended(&result);
        result
    }

    async fn set_lease(&self, record: &MachineRecord) -> Result<(), EffectError> {
        let under_way = self.began(record.id, "set lease");
        let lease = lease_of(record);
        if let Some(link) = self.world.inner().links.get_mut(&record.id) {
            link.lease = lease;
        }
        let result = self.talk(record.id, |vm, _, _| vm.lease = lease).await;
        under_way.ended(&result);
        result
    }

    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), EffectError> {
        let under_way = self.began(id, "stop");
        self.world.check_may_end(id, "told to stop");
        let result = self.talk(id, |vm, now, rng| vm.stop(grace.as_millis() as u64, now, rng)).await;
        under_way.ended(&result);
        result
    }

    async fn destroy(&self, id: MachineId, driver: DriverName) -> Result<(), EffectError> {
        let under_way = self.began(id, "destroy");
        if self.world.inner().host.get(&(driver, id)).is_some_and(Vm::works) {
            self.world.check_may_end(id, "destroyed");
        }
        let result = self.do_destroy(id, driver).await;
        under_way.ended(&result);
        result
    }

    async fn forget(&self, id: MachineId) {
        let under_way = self.began(id, "forget");
        self.world.point(self.generation).await;
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
