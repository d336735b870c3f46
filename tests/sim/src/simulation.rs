//! One simulation: chaos for some minutes, then quiet until everything has ended.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use calve_server::reconcile::records::View;
use calve_server::reconcile::run as run_loop;
use calve_server::state::State;
use calve_server::state::memory::MemoryState;

use crate::effects::SimEffects;
use crate::faults::SimFaults;
use crate::users::{self, Api};
use crate::world::{Chances, World};

/// How long things go wrong.
const CHAOS: Duration = Duration::from_secs(120);
/// How long everything may then take to end: the longest boot, and the longest lease.
const QUIET_MAX: Duration = Duration::from_secs(1800);
/// Longest time without a server.
const DOWN_MAX_MS: u64 = 90_000;
/// Longer than records of ended machines are kept.
const FORGETTING: Duration = Duration::from_secs(25 * 3600);

/// How to simulate.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// A fault in the world that the checks must find.
    pub plant: Plant,
    /// Whether the trace's lines are kept.
    pub keep_trace: bool,
}

/// A fault that no chance makes; the checks must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// None.
    None,
    /// A driver says that it destroyed what it left alive.
    DestroyHides,
    /// Lists do not show what is alive.
    ListHidesLiving,
    /// Ends that a crash left unannounced stay so.
    NothingUnannounced,
    /// `Stopped` is written twice.
    StoppedTwice,
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// What must not be, and was.
    pub violations: Vec<String>,
    /// What happened, if it was to be kept.
    pub trace: Vec<String>,
    /// A number that two runs share only if everything happened in the same way.
    pub trace_hash: u64,
    /// How many machines were asked for.
    pub machines: usize,
    /// How many servers there were.
    pub servers: u32,
}

/// Simulates.
pub fn run(options: Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    runtime.block_on(simulate(options))
}

async fn simulate(options: Options) -> Report {
    let world = World::new(options.seed, options.plant, options.keep_trace);
    let store = Arc::new(MemoryState::default());
    let api: Arc<Mutex<Option<Api>>> = Arc::default();
    let current = {
        let api = api.clone();
        move || api.lock().expect("no holder panics").clone()
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let world = world.clone();
        async move { world.drive().await }
    });
    tasks.spawn(keep_serving(world.clone(), store.clone(), api));
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..3 {
        users.spawn(users::live(world.clone(), current.clone()));
    }

    let observer = View::default();
    watch(&world, &store, &observer, CHAOS, || false).await;
    drop(users);
    world.say(|| "quiet".to_owned());
    world.inner().chances = Chances::default();
    let served = async {
        loop {
            match current().filter(|api| world.lives(api.generation)) {
                Some(api) => break api,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    };
    let api = served.await;
    api.view.refresh(&*api.state).await.expect("faults are off");
    users::end_endless(&world, &api).await;
    // A write that was slow before it was quiet is announced once its answer comes.
    let ended = || observer.living() == 0 && world.inner().host.is_empty() && world.has_announced(&observer);
    watch(&world, &store, &observer, QUIET_MAX, ended).await;
    world.check_end(&observer);
    check_left_alone(&world, &store).await;
    if options.seed.is_multiple_of(32) {
        check_forgotten(&world, &store).await;
    }
    drop(tasks);
    report(&world)
}

/// Keeps a server running, over the same state and host, whenever one has crashed.
async fn keep_serving(world: Arc<World>, store: Arc<MemoryState>, api: Arc<Mutex<Option<Api>>>) {
    loop {
        let crashed = world.crashed.notified();
        tokio::pin!(crashed);
        crashed.as_mut().enable();
        let generation = world.new_server();
        let faults = SimFaults { world: world.clone(), generation };
        let state: Arc<dyn State> = Arc::new(store.with_faults(Arc::new(faults)));
        let effects = Arc::new(SimEffects { world: world.clone(), generation });
        let view = View::default();
        let server = Api { state: state.clone(), view: view.clone(), generation };
        *api.lock().expect("no holder panics") = Some(server);
        run_loop(state, view, effects, crashed).await;
        *api.lock().expect("no holder panics") = None;
        let down = {
            let rng = &mut world.inner().rng;
            if rng.chance(500) { rng.range(1, 100) } else { rng.range(100, DOWN_MAX_MS) }
        };
        tokio::time::sleep(Duration::from_millis(down)).await;
    }
}

/// Lets time pass until `done`, at most `at_most`, and checks what must always be so.
async fn watch(world: &World, store: &MemoryState, view: &View, at_most: Duration, done: impl Fn() -> bool) {
    let end = world.now() + at_most.as_millis() as u64;
    while world.now() < end {
        tokio::time::sleep(Duration::from_millis(1_777)).await;
        view.refresh(store).await.expect("the store itself has no faults");
        world.check_now(view);
        if done() {
            return;
        }
    }
}

/// A satisfied world is left alone.
async fn check_left_alone(world: &World, store: &MemoryState) {
    let before = (store.list("").await.expect("no faults").1, world.inner().effects);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let after = (store.list("").await.expect("no faults").1, world.inner().effects);
    if before != after {
        world.violation(format!("a satisfied world is not left alone: {before:?} became {after:?}"));
    }
}

/// In the end nothing is left in the state either.
async fn check_forgotten(world: &World, store: &MemoryState) {
    tokio::time::sleep(FORGETTING).await;
    world.kill();
    tokio::time::sleep(FORGETTING).await;
    world.kill();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for entry in store.snapshot() {
        world.violation(format!("the state still holds {}", entry.key));
    }
}

fn report(world: &World) -> Report {
    let mut inner = world.inner();
    Report {
        violations: std::mem::take(&mut inner.violations),
        trace: std::mem::take(&mut inner.trace),
        trace_hash: inner.trace_hash,
        machines: inner.truth.len(),
        servers: inner.generation,
    }
}
