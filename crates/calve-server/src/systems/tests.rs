use std::sync::Mutex;

use async_trait::async_trait;
use calve_core::Timestamp;
use calve_nix::StorePath;
use calve_wire::system::{HostAnswer, HostOrder, HostSwitch, SwitchAction, SwitchOutcome, SwitchStage};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::agents::LinkError;
use crate::reconcile::records::{NewMachine, View, create, machine_key};
use crate::state::StateError;
use crate::state::memory::{Faults, MemoryState, Operation};

const TOPLEVEL: &str = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-system";
const MINUTE: Duration = Duration::from_secs(60);

/// A host that answers as a test says, from its time on.
struct Scripted {
    since: Instant,
    asked: Mutex<Vec<&'static str>>,
    script: Box<dyn Fn(&'static str, Duration) -> Said + Send + Sync>,
}

/// What it answers.
enum Said {
    /// That the switch stands so.
    Stage(SwitchStage),
    /// That it ended so.
    Ended(SwitchOutcome),
    /// Nothing, or nothing that is heard.
    Nothing(LinkError),
}

impl Scripted {
    fn ask(&self, what: &'static str) -> Result<HostSwitch, HostError> {
        self.asked.lock().unwrap().push(what);
        let (stage, outcome) = match (self.script)(what, self.since.elapsed()) {
            Said::Stage(stage) => (stage, None),
            Said::Ended(outcome) => (SwitchStage::Ended, Some(outcome)),
            Said::Nothing(error) => return Err(error.into()),
        };
        Ok(HostSwitch {
            id: "one".to_owned(),
            toplevel: TOPLEVEL.to_owned(),
            former: TOPLEVEL.to_owned(),
            action: SwitchAction::Switch,
            generation: None,
            by: String::new(),
            begun_unix_ms: 0,
            ended_unix_ms: None,
            stage,
            healthy: true,
            outcome,
            message: None,
        })
    }
}

#[async_trait]
impl Hosts for Scripted {
    async fn bring(&self, _: MachineId, _: &StorePath, _: &str) -> Result<Option<String>, HostError> {
        self.ask("bring").map(|_| None)
    }

    async fn begin(&self, _: MachineId, _: &HostOrder) -> Result<HostAnswer, HostError> {
        self.ask("begin").map(|switch| HostAnswer::Done { switch })
    }

    async fn status(&self, _: MachineId) -> Result<Option<HostSwitch>, HostError> {
        self.ask("status").map(Some)
    }

    async fn hear_anew(&self, _: MachineId, _: Duration) -> Result<(), HostError> {
        Ok(())
    }

    async fn confirm(&self, _: MachineId, _: &str) -> Result<HostAnswer, HostError> {
        self.ask("confirm").map(|switch| HostAnswer::Done { switch })
    }

    async fn facts(&self, _: MachineId) -> Result<HostFacts, HostError> {
        Err(HostError::Missing)
    }
}

/// A machine, and a server that switches it.
struct Stage {
    state: Arc<dyn State>,
    hosts: Arc<Scripted>,
    systems: Arc<Systems>,
    shutdown: CancellationToken,
}

fn id() -> MachineId {
    MachineId::new(Timestamp(1), 1)
}

fn pending() -> PendingSwitch {
    let (id, machine, toplevel) = ("one".to_owned(), "run-1".to_owned(), TOPLEVEL.to_owned());
    PendingSwitch::new(id, machine, toplevel, SwitchAction::Switch, String::new(), 0)
}

impl Stage {
    async fn set(script: impl Fn(&'static str, Duration) -> Said + Send + Sync + 'static) -> Self {
        let state: Arc<dyn State> = Arc::new(MemoryState::default());
        create(&*state, &View::default(), NewMachine::bare(id()), Timestamp(1)).await.unwrap();
        Self::over(state, script)
    }

    fn over(
        state: Arc<dyn State>,
        script: impl Fn(&'static str, Duration) -> Said + Send + Sync + 'static,
    ) -> Self {
        let (since, asked) = (Instant::now(), Mutex::default());
        let hosts = Arc::new(Scripted { since, asked, script: Box::new(script) });
        let shutdown = CancellationToken::new();
        let systems = Systems::start(state.clone(), hosts.clone(), shutdown.clone());
        Self { state, hosts, systems, shutdown }
    }

    /// The outcome once it has ended, after so long.
    async fn outcome_after(&self, time: Duration) -> Option<SwitchOutcome> {
        sleep(time).await;
        let record = self.systems.get(id()).await.unwrap();
        assert_eq!(record.pending.is_none(), !record.ended.is_empty());
        record.ended.last().and_then(|view| view.outcome)
    }
}

/// Nobody is heard.
fn silent() -> Said {
    Said::Nothing(LinkError::NotLinked)
}

#[tokio::test(start_paused = true)]
async fn what_a_host_may_have_begun_does_not_count_as_refused() {
    let never = Stage::set(|_, _| silent()).await;
    never.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(never.outcome_after(11 * MINUTE).await, Some(SwitchOutcome::Refused));
    // The order was under way when the link broke.
    let maybe = Stage::set(|what, _| match what {
        "bring" => Said::Stage(SwitchStage::Bringing),
        _ => silent(),
    });
    let maybe = maybe.await;
    maybe.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(maybe.outcome_after(MINUTE).await, None);
    // Nor for the next server, which may not even be able to bring anything.
    maybe.shutdown.cancel();
    let next = Stage::over(maybe.state.clone(), |_, _| silent());
    assert_eq!(next.outcome_after(11 * MINUTE).await, Some(SwitchOutcome::Failed));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_given_the_word_is_waited_for_and_another_is_not() {
    let said_so = |what: &'static str, at: Duration| match what {
        "confirm" => Said::Nothing(LinkError::Broken),
        _ if at < MINUTE => Said::Stage(SwitchStage::Confirming),
        _ if at < 60 * MINUTE => silent(),
        _ => Said::Ended(SwitchOutcome::Applied),
    };
    let stage = Stage::set(said_so).await;
    stage.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(stage.outcome_after(30 * MINUTE).await, None);
    assert!(stage.hosts.asked.lock().unwrap().contains(&"confirm"));
    // The next server knows that as well.
    stage.shutdown.cancel();
    let next = Stage::over(stage.state.clone(), |_, at| match at {
        at if at < 30 * MINUTE => silent(),
        _ => Said::Ended(SwitchOutcome::Applied),
    });
    assert_eq!(next.outcome_after(20 * MINUTE).await, None);
    assert_eq!(next.outcome_after(11 * MINUTE).await, Some(SwitchOutcome::Applied));

    let unsaid = |_: &'static str, at: Duration| match at {
        at if at < MINUTE => Said::Stage(SwitchStage::Applying),
        _ => silent(),
    };
    let stage = Stage::set(unsaid).await;
    stage.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(stage.outcome_after(4 * MINUTE).await, None);
    assert_eq!(stage.outcome_after(2 * MINUTE).await, Some(SwitchOutcome::Failed));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_not_linked_yet_is_waited_for_and_one_that_is_gone_is_not() {
    let late = |_: &'static str, at: Duration| match at {
        at if at < Duration::from_secs(5) => Said::Nothing(LinkError::Unknown),
        _ => Said::Ended(SwitchOutcome::Applied),
    };
    let stage = Stage::set(late).await;
    stage.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(stage.outcome_after(MINUTE).await, Some(SwitchOutcome::Applied));
    let gone = Stage::over(Arc::new(MemoryState::default()), |_, _| Said::Nothing(LinkError::Unknown));
    gone.systems.begin(id(), pending()).await.unwrap();
    assert_eq!(gone.outcome_after(Duration::from_secs(1)).await, Some(SwitchOutcome::Refused));
}

/// Changes take a second; the first reads fail.
struct Slow {
    until: Instant,
}

#[async_trait]
impl Faults for Slow {
    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        match operation {
            Operation::Change => sleep(Duration::from_secs(1)).await,
            _ if Instant::now() < self.until => return Err(StateError::Failed("not yet".into())),
            _ => {}
        }
        Ok(())
    }

    async fn after(&self, _: Operation) -> Result<(), StateError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_switch_is_driven_though_its_user_goes_and_the_state_is_away_for_a_while() {
    let slow = |until| {
        let faults = Arc::new(Slow { until });
        move |store: &MemoryState| Arc::new(store.with_faults(faults)) as Arc<dyn State>
    };
    let store = MemoryState::default();
    let applied = |_: &'static str, _| Said::Ended(SwitchOutcome::Applied);
    let stage = Stage::over(slow(Instant::now())(&store), applied);
    let asking = stage.systems.begin(id(), pending());
    assert!(timeout(Duration::from_millis(500), asking).await.is_err(), "it takes a second");
    assert_eq!(stage.outcome_after(MINUTE).await, Some(SwitchOutcome::Applied));

    let store = MemoryState::default();
    records::begin(&store, id(), pending()).await.unwrap();
    let stage = Stage::over(slow(Instant::now() + MINUTE)(&store), applied);
    assert_eq!(stage.outcome_after(2 * MINUTE).await, Some(SwitchOutcome::Applied));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_made_for_a_system_is_switched_to_it_once_for_each_attempt() {
    let scripted = |ends: SwitchOutcome| {
        Stage::set(move |what, elapsed| match what {
            "bring" if elapsed < Duration::from_secs(1) => silent(),
            "bring" => Said::Stage(SwitchStage::Bringing),
            _ => Said::Ended(ends),
        })
    };
    let record = async |stage: &Stage| {
        let entry = stage.state.get(&machine_key(id())).await.unwrap().expect("it was made");
        MachineRecord::from_json(&entry.value).unwrap()
    };
    let toplevel: StorePath = TOPLEVEL.parse().unwrap();
    let begun =
        |stage: &Stage| stage.hosts.asked.lock().unwrap().iter().filter(|what| **what == "begin").count();

    let stage = scripted(SwitchOutcome::Applied).await;
    let mut made = record(&stage).await;
    // Asked again and again, as the loop does.
    assert_eq!(
        stage.systems.given(&made, &toplevel, Timestamp(1), Duration::ZERO).await.unwrap(),
        Given::UnderWay
    );
    for _ in 0..3 {
        assert_eq!(stage.systems.given(&made, &toplevel, Timestamp(1), MINUTE).await.unwrap(), Given::Yes);
    }
    assert_eq!(begun(&stage), 1);
    assert_eq!(stage.systems.get(id()).await.unwrap().desired.as_deref(), Some(TOPLEVEL));
    made.attempt += 1;
    assert_eq!(stage.systems.given(&made, &toplevel, Timestamp(1), MINUTE).await.unwrap(), Given::Yes);
    assert_eq!(begun(&stage), 2);

    let stage = scripted(SwitchOutcome::RolledBack).await;
    let given = stage.systems.given(&record(&stage).await, &toplevel, Timestamp(1), MINUTE).await.unwrap();
    assert!(matches!(&given, Given::No(why) if why.contains("RolledBack")), "{given:?}");
}
