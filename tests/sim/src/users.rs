//! Users: create, stop, extend and remove machines, at any moment.

use std::sync::Arc;
use std::time::Duration;

use calve_core::State::Running;
use calve_core::{DriverName, Kind, MachineId, Runs, StopReason, Timestamp};
use calve_server::reconcile::records::{self, NewMachine, RecordsError, View};
use calve_server::state::State;
use calve_server::systems::Systems;
use calve_wire::machine::{MachineSpec, Place, Program, Restart, Workload};
use calve_wire::record::MachineRecord;
use calve_wire::system::{PendingSwitch, SwitchAction};

use crate::check::is_given;
use crate::provider::REGION;
use crate::rng::{Rng, mix};
use crate::systems::{SYSTEMS, toplevel};
use crate::truth::Truth;
use crate::world::World;

/// A server as users reach it.
#[derive(Clone)]
pub struct Api {
    pub state: Arc<dyn State>,
    pub view: View,
    pub generation: u32,
    /// Where users switch systems.
    pub systems: Option<Arc<Systems>>,
}

/// What a user does next.
enum Wish {
    Create(Box<NewMachine>),
    Stop(MachineId, Option<Duration>),
    Extend(MachineId, Duration),
    Remove(MachineId, Option<Duration>),
    /// Of the hosts that run, one by chance.
    Switch(u64, Box<PendingSwitch>),
    Look,
}

/// Lets one user live until all steps are taken; `api` gives the living server.
pub async fn live(world: Arc<World>, api: impl Fn() -> Option<Api>) {
    loop {
        let Some((mut rng, left_out)) = next_step(&world) else { return };
        let pause = if rng.chance(300) { 0 } else { rng.range(1, 20_000) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if left_out {
            continue;
        }
        let api = loop {
            match api().filter(|api| world.lives(api.generation)) {
                Some(api) => break api,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let wish = wish(&world, &mut rng);
        // A crash of the server takes the request with it.
        tokio::select! {
            biased;
            () = world.crashed.notified() => {}
            () = grant(&world, &api, wish) => {}
        }
    }
}

/// The chance of the next step, each by its number: leaving one out changes no other. And whether it is left out.
fn next_step(world: &World) -> Option<(Rng, bool)> {
    let mut inner = world.inner();
    inner.steps_left = inner.steps_left.checked_sub(1)?;
    let number = inner.steps_left;
    Some((Rng::new(mix(inner.users_seed, number)), inner.faults.without.steps.contains(&number)))
}

/// Ends every machine whose lease has no end.
pub async fn end_endless(world: &World, api: &Api) {
    api.view.refresh(&*api.state).await.expect("nothing goes wrong any more");
    for record in api.view.all() {
        if record.deadline_unix_ms.is_none() && !record.state.is_terminal() {
            grant(world, api, Wish::Stop(record.id, None)).await;
        }
    }
}

fn wish(world: &World, rng: &mut Rng) -> Wish {
    let now = world.timestamp();
    let known: Vec<MachineId> = world.inner().truth.keys().copied().collect();
    let kind = rng.range(0, 10);
    if world.inner().late && (matches!(kind, 3 | 4 | 9) || (kind > 4 && rng.chance(500))) {
        return late(world, rng, now);
    }
    if known.is_empty() || kind < 5 {
        return Wish::Create(Box::new(new_machine(
            &[Kind::Job, Kind::Job, Kind::Service, Kind::System],
            rng,
            now,
        )));
    }
    // Mostly one of the last, which may still live.
    let recent = known.len().saturating_sub(6);
    let id = known[rng.range(recent as u64, known.len() as u64) as usize];
    let grace = rng.chance(500).then(|| Duration::from_millis(rng.range(0, 8_000)));
    match kind {
        5 | 6 => Wish::Stop(id, grace),
        7 => Wish::Extend(id, Duration::from_millis(rng.range(1, 60_000))),
        8 => Wish::Remove(id, grace),
        _ => Wish::Look,
    }
}

fn new_machine(kinds: &[Kind], rng: &mut Rng, now: Timestamp) -> NewMachine {
    let kind = rng.pick(kinds);
    let program = Program {
        path: String::new(),
        args: Vec::new(),
        env: Default::default(),
        cwd: None,
        extra_roots: Vec::new(),
        work_tree: None,
        stdin: false,
    };
    let far = rng.chance(150);
    let spec = MachineSpec {
        restart: if kind == Kind::Service { Restart::Always } else { Restart::Never },
        driver: far.then_some(DriverName::DigitalOcean),
        place: far.then(place),
        ..MachineSpec::new(
            kind,
            if kind == Kind::System { Workload::Base } else { Workload::Program(program) },
        )
    };
    with_spec(spec, rng, now)
}

/// What the simulator learnt late.
fn late(world: &World, rng: &mut Rng, now: Timestamp) -> Wish {
    match rng.range(0, 10) {
        0 if world.inner().adopts_hosts => Wish::Create(Box::new(adopted_host(rng, now))),
        0..2 => Wish::Create(Box::new(adoption(world, rng, now))),
        2..4 if world.inner().gives => Wish::Create(Box::new(made_for_a_system(rng, now))),
        2..4 => Wish::Create(Box::new(new_machine(&[Kind::System], rng, now))),
        _ => Wish::Switch(rng.next(), Box::new(switch(rng))),
    }
}

fn switch(rng: &mut Rng) -> PendingSwitch {
    use SwitchAction::{Boot, DryActivate, Switch, Test};
    let id = format!("{:016x}", rng.next());
    let toplevel = toplevel(rng.range(0, SYSTEMS));
    let action = rng.pick(&[Switch, Switch, Switch, Boot, Test, DryActivate]);
    let user = "a user".to_owned();
    let mut pending = PendingSwitch::new(id, "a host".to_owned(), toplevel, action, user, 0);
    (pending.health, pending.confirm_ms) = (Some("true".to_owned()), rng.range(2_000, 60_000));
    pending
}

/// A machine that somebody else made: also one that was adopted before, or is gone.
fn adoption(world: &World, rng: &mut Rng, now: Timestamp) -> NewMachine {
    let strangers: Vec<u64> = world.inner().account.strangers().collect();
    let machine = rng.pick(&strangers).to_string();
    let spec = MachineSpec {
        driver: Some(DriverName::DigitalOcean),
        place: Some(place()),
        ..MachineSpec::new(Kind::System, Workload::Adopted { machine })
    };
    with_spec(spec, rng, now)
}

/// A host that is reached over SSH: also one that was adopted before.
fn adopted_host(rng: &mut Rng, now: Timestamp) -> NewMachine {
    let host = rng.pick(&["ssh://root@one", "ssh://root@two"]).to_owned();
    let spec = MachineSpec {
        driver: Some(DriverName::Ssh),
        place: Some(Place { region: host.clone(), ..place() }),
        ..MachineSpec::new(Kind::System, Workload::Adopted { machine: host })
    };
    with_spec(spec, rng, now)
}

/// A machine at the provider that is switched to its system once it is there.
fn made_for_a_system(rng: &mut Rng, now: Timestamp) -> NewMachine {
    let toplevel = toplevel(rng.range(0, SYSTEMS)).parse().expect("a store path");
    let spec = MachineSpec {
        driver: Some(DriverName::DigitalOcean),
        place: Some(place()),
        ..MachineSpec::new(Kind::System, Workload::System { toplevel })
    };
    with_spec(spec, rng, now)
}

fn with_spec(spec: MachineSpec, rng: &mut Rng, now: Timestamp) -> NewMachine {
    let name = rng.chance(300).then(|| rng.pick(&["web", "db", "run-2"]).parse().expect("a name"));
    NewMachine {
        held: false,
        id: MachineId::new(now, u128::from(rng.next())),
        agent_token: String::new(),
        name,
        spec,
        ttl: (!rng.chance(100)).then(|| Duration::from_millis(rng.range(1_000, 120_000))),
        grace: Duration::from_millis(rng.range(0, 10_000)),
    }
}

fn place() -> Place {
    Place { region: REGION.to_owned(), size: "small".to_owned(), image: None, host_key: None }
}

async fn grant(world: &World, api: &Api, wish: Wish) {
    let now = world.timestamp();
    let (state, view) = (&*api.state, &api.view);
    let said = match wish {
        Wish::Create(new) => {
            let id = new.id;
            let deadline = world.in_world_time(new.ttl.map(|ttl| now.after(ttl).0));
            let truth = Truth {
                asked_to_end: false,
                promised_end: None,
                deadline: deadline.map(|deadline| (deadline, deadline)),
                grace: new.grace.as_millis() as u64,
                acknowledged: false,
            };
            world.inner().truth.insert(new.id, truth);
            let result = records::create(state, view, *new, now).await;
            if let (Ok(_), Some(truth)) = (&result, world.inner().truth.get_mut(&id)) {
                truth.acknowledged = true;
            }
            say(world, format!("create {id}"), result)
        }
        Wish::Stop(id, grace) => {
            world.asked_to_end(id);
            let result = records::request_stop(state, view, id, grace, StopReason::Requested, now).await;
            world.promised(id, &result);
            say(world, format!("stop {id}"), result)
        }
        Wish::Remove(id, grace) => {
            world.asked_to_end(id);
            let result = records::request_remove(state, view, id, grace, now).await;
            world.promised(id, &result);
            say(world, format!("rm {id}"), result)
        }
        Wish::Extend(id, by) => {
            world.may_extend(id, by);
            let result = records::extend(state, view, id, by, now).await;
            if let Ok(record) = &result {
                world.extended(id, record.deadline_unix_ms);
            }
            say(world, format!("extend {id}"), result)
        }
        Wish::Switch(chance, pending) => {
            let listed = records::list(state, view).await.unwrap_or_default();
            let is_system = |it: &&Arc<MachineRecord>| {
                let is_host = it.spec.workload == Workload::Base || it.spec.runs() == Runs::Host;
                it.state == Running && (is_host || is_given(it))
            };
            let hosts: Vec<_> = listed.iter().filter(is_system).collect();
            let host = hosts.get(chance as usize % hosts.len().max(1));
            if let (Some(systems), Some(host)) = (&api.systems, host) {
                let what = format!("switch {} to {} ({})", host.id, pending.view.toplevel, pending.view.id);
                let begun = systems.begin(host.id, *pending).await;
                let said = begun.err().map_or_else(|| "ok".to_owned(), |error| error.to_string());
                world.say(|| format!("user: {what}: {said}"));
            }
            host.is_some()
        }
        Wish::Look => records::list(state, view).await.is_ok(),
    };
    let _ = said;
}

fn say<T>(world: &World, what: String, result: Result<T, RecordsError>) -> bool {
    let ok = result.is_ok();
    world.say(|| {
        format!("user: {what}: {}", result.err().map_or_else(|| "ok".to_owned(), |error| error.to_string()))
    });
    ok
}

impl World {
    fn asked_to_end(&self, id: MachineId) {
        if let Some(truth) = self.inner().truth.get_mut(&id) {
            truth.asked_to_end = true;
        }
    }

    fn promised(&self, id: MachineId, answer: &Result<Arc<MachineRecord>, RecordsError>) {
        let stop = answer.as_ref().ok().and_then(|record| record.stop);
        let end = self.in_world_time(stop.map(|stop| stop.since_unix_ms + stop.grace_ms));
        if let (Some(truth), Some(end)) = (self.inner().truth.get_mut(&id), end) {
            truth.promised_end = Some(end);
        }
    }

    fn may_extend(&self, id: MachineId, by: Duration) {
        if let Some(Truth { deadline: Some((_, latest)), .. }) = self.inner().truth.get_mut(&id) {
            *latest += by.as_millis() as u64;
        }
    }

    fn extended(&self, id: MachineId, to: Option<u64>) {
        let to = self.in_world_time(to);
        if let (Some(Truth { deadline: Some((sure, _)), .. }), Some(to)) =
            (self.inner().truth.get_mut(&id), to)
        {
            *sure = to.max(*sure);
        }
    }
}
