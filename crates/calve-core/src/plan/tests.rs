//! Each rule on a small world: `check(world, expect)` with the plan written out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::*;
use crate::*;

const NOW: Timestamp = Timestamp(1_000_000);
const QEMU_ONLY: &str = "no user namespaces";

/// A world with one machine, in the making.
struct Case {
    node: NodeName,
    machines: BTreeMap<MachineId, Machine>,
    complete: bool,
    sights: BTreeMap<MachineId, Sight>,
    drivers: Drivers,
    lists: BTreeMap<DriverName, List>,
    now: Timestamp,
}

fn id(n: u128) -> MachineId {
    MachineId::new(Timestamp(1), n)
}

/// A job in this state, placed in a sandbox where the state says so, living for another minute.
fn machine(n: u128, state: State) -> Machine {
    let placed = state >= State::Placed;
    let made = state >= State::Creating;
    let node: NodeName = "local".parse().unwrap();
    Machine {
        id: id(n),
        name: MachineName::numbered(n as u32),
        kind: Kind::Job,
        runs: Runs::Program,
        state,
        goal: Goal::Run,
        lease: Lease { deadline: Some(Timestamp(NOW.0 + 60_000)), grace: Duration::from_secs(10) },
        wanted_driver: None,
        placement: placed.then_some((node, DriverName::Sandbox)),
        attempt: u32::from(made),
        exit: None,
        created_at: NOW,
        state_since: NOW,
        remove: false,
    }
}

fn agent(phase: Phase) -> Agent {
    Agent {
        linked: true,
        phase: Some(phase),
        starts: u32::from(phase != Phase::Waiting),
        ends: 0,
        last_exit: None,
        healthy: None,
        expired: false,
        log_complete: true,
    }
}

/// A list that shows every machine.
fn listed_at(asked: u64, machine: Option<(MachineId, Listed)>) -> List {
    List { asked: Tick(asked), whole: true, machines: machine.into_iter().collect() }
}

impl Case {
    /// One machine in `state`, of which nothing is known beyond its record.
    fn new(state: State) -> Self {
        Self::with(machine(1, state))
    }

    fn with(machine: Machine) -> Self {
        let usable = DriverName::ALL.map(|driver| (driver, Ok(())));
        let listed = Listed { attempt: machine.attempt, alive: true, ended: None };
        let made = (machine.attempt > 0 && !machine.state.is_terminal()).then_some((machine.id, listed));
        Self {
            node: "local".parse().unwrap(),
            complete: true,
            sights: BTreeMap::from([(machine.id, Sight::default())]),
            drivers: Drivers { as_of: Some(NOW), usable: usable.into() },
            lists: BTreeMap::from([
                (DriverName::Sandbox, listed_at(5, made)),
                (DriverName::Qemu, listed_at(5, None)),
            ]),
            machines: BTreeMap::from([(machine.id, machine)]),
            now: NOW,
        }
    }

    /// One machine in `state` whose agent says `phase`, linked and told everything.
    fn heard(state: State, phase: Phase) -> Self {
        let mut case = Self::new(state);
        let lease_told = Some(case.machine().lease);
        *case.sight() = Sight { link_asked: true, agent: Some(agent(phase)), lease_told, ..Sight::default() };
        case
    }

    fn machine(&mut self) -> &mut Machine {
        self.machines.values_mut().next().unwrap()
    }

    fn sight(&mut self) -> &mut Sight {
        self.sights.get_mut(&id(1)).unwrap()
    }

    fn stopping(mut self, reason: StopReason) -> Self {
        self.machine().goal = Goal::Stop { since: NOW, grace: Duration::from_secs(10), reason };
        self
    }

    fn at(mut self, after_ms: u64) -> Self {
        self.now = Timestamp(NOW.0 + after_ms);
        self
    }

    fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn absent(self) -> Self {
        self.but(|case| case.lists.get_mut(&DriverName::Sandbox).unwrap().machines.clear())
    }

    fn plan(&self) -> Plan {
        let world = World {
            node: &self.node,
            since: Timestamp(0),
            machines: &self.machines,
            complete: self.complete,
            sights: &self.sights,
            drivers: &self.drivers,
            lists: &self.lists,
        };
        plan(&world, self.now)
    }

    /// The world once the plan's changes are written and its effects are under way.
    fn planned(mut self, plan: &Plan) -> Self {
        for action in &plan.actions {
            let sight = self.sights.entry(action.id()).or_default();
            match action {
                Action::Write { id, changes } => {
                    let machine = self.machines.get_mut(id).unwrap();
                    changes.iter().for_each(|change| change.apply(machine, self.now));
                }
                Action::Link { .. } => sight.link_asked = true,
                _ => sight.busy = true,
            }
        }
        self
    }
}

/// Compares the plan, written out, and sees that planning twice adds nothing.
#[track_caller]
fn check(case: Case, expect: &str) {
    let plan = case.plan();
    let mut text = String::new();
    for action in &plan.actions {
        writeln!(text, "{action}").unwrap();
    }
    for wait in &plan.waits {
        let until = wait.until.map(|at| format!(" until {}", at.0 as i64 - NOW.0 as i64)).unwrap_or_default();
        writeln!(text, "waits for {}{until}", wait.on.as_str()).unwrap();
    }
    let expect: Vec<&str> = expect.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expect);

    let mut after = case.planned(&plan);
    let again = after.plan();
    assert_eq!(again.actions, [], "planning twice adds nothing");
    let wake = again.next_wake.unwrap_or(after.now.after(Duration::from_secs(3600)));
    assert!(wake > after.now, "it does not wake for nothing");
    after.now = Timestamp(wake.0 - 1);
    assert_eq!(after.plan().actions, [], "nor does time until it wakes");
}

#[test]
fn a_new_machine_is_placed_and_created_at_once() {
    check(Case::new(State::Declared), "write placed on local with sandbox, creating 1\ncreate attempt 1");
}

#[test]
fn placement_follows_the_workload_and_what_is_usable() {
    let with = |runs, wanted| {
        Case::new(State::Declared).but(|case| {
            case.machine().runs = runs;
            case.machine().wanted_driver = wanted;
        })
    };
    let no_sandbox = |case: Case| {
        case.but(|case| {
            case.drivers.usable.insert(DriverName::Sandbox, Err(QEMU_ONLY.to_owned()));
        })
    };
    let unknown = |case: Case| case.but(|case| drop(case.drivers.usable.remove(&DriverName::Qemu)));
    let (in_qemu, in_sandbox) = (
        "write placed on local with qemu, creating 1\ncreate attempt 1",
        "write placed on local with sandbox, creating 1\ncreate attempt 1",
    );
    check(with(Runs::System, None), in_qemu);
    check(with(Runs::Base, None), in_qemu);
    check(with(Runs::Program, Some(DriverName::Qemu)), in_qemu);
    // What costs money is made where it was asked for and never instead of something else.
    let elsewhere = "write placed on local with digitalocean, creating 1\ncreate attempt 1";
    check(with(Runs::Program, Some(DriverName::DigitalOcean)), elsewhere);
    check(with(Runs::System, Some(DriverName::DigitalOcean)), elsewhere);
    check(no_sandbox(with(Runs::Program, None)), in_qemu);
    check(unknown(with(Runs::Program, None)), in_sandbox);
    check(unknown(with(Runs::Base, None)), "waits for the drivers to be looked at");
    check(unknown(no_sandbox(with(Runs::Program, None))), "waits for the drivers to be looked at");
    check(
        no_sandbox(with(Runs::Program, Some(DriverName::Sandbox))),
        "write end failed since 1000000 with 0 ms, \"the driver sandbox cannot be used: no user namespaces; choose \
         another --driver or see `calve doctor`\", failed",
    );
    check(
        with(Runs::System, Some(DriverName::Ssh)),
        "write end failed since 1000000 with 0 ms, \"a borrowed host keeps its own system; `calve adopt ssh://HOST --ttl \
         none`, and then `calve switch`, give it another\", failed",
    );
    check(
        with(Runs::System, Some(DriverName::Sandbox)),
        "write end failed since 1000000 with 0 ms, \"a system boots its own kernel, which the driver sandbox cannot \
         do; use --driver qemu or none\", failed",
    );
}

#[test]
fn a_driver_that_was_unusable_before_the_machine_was_declared_is_looked_at_again() {
    let case = Case::new(State::Declared).but(|case| {
        case.machine().wanted_driver = Some(DriverName::Qemu);
        case.drivers.as_of = Some(Timestamp(NOW.0 - 1));
        case.drivers.usable.insert(DriverName::Qemu, Err("no qemu-system-x86_64".to_owned()));
    });
    check(case, "waits for the drivers to be looked at");
}

#[test]
fn a_creation_is_repeated_with_pauses_and_then_given_up() {
    let ended = |attempt, retry| {
        Case::new(State::Creating).but(|case| {
            case.machine().attempt = attempt;
            let fault = Fault { message: "no space".to_owned(), retry };
            case.sight().created = Some(Created { attempt, result: Err(fault) });
        })
    };
    check(Case::new(State::Creating), "create attempt 1");
    check(
        ended(1, true),
        "write creating 2, \"attempt 1 failed: no space\"\nwaits for the pause after a failure until 1000",
    );
    check(
        ended(3, true),
        "write creating 4, \"attempt 3 failed: no space\"\nwaits for the pause after a failure until 4000",
    );
    let over = "write end failed since 1000000 with 0 ms, \"no space\", draining\ndestroy in sandbox";
    check(ended(4, true), over);
    check(ended(1, false), over);
    let second = ended(1, true).but(|case| case.machine().attempt = 2);
    check(second.at(999), "waits for the pause after a failure until 1000");
    check(ended(1, true).but(|case| case.machine().attempt = 2).at(1000), "create attempt 2");
}

#[test]
fn a_made_machine_is_linked_and_its_agent_awaited() {
    let made = Case::new(State::Creating).but(|case| {
        case.sight().created = Some(Created { attempt: 1, result: Ok(()) });
        case.sight().lease_told = Some(case.machines[&id(1)].lease);
    });
    check(made, "write booting\nlink\nwaits for its agent's first words until 30000");
}

#[test]
fn an_agent_that_does_not_speak_in_time_fails_its_machine() {
    let silent =
        |after| Case::heard(State::Booting, Phase::Waiting).but(|case| case.sight().agent = None).at(after);
    check(silent(29_999), "waits for its agent's first words until 30000");
    check(
        silent(30_000),
        "write end failed since 1030000 with 0 ms, \"the agent in the machine did not speak within 30 s of its \
         creation; is this host overloaded?\", draining\ndestroy in sandbox",
    );
}

#[test]
fn the_workload_is_handed_over_once_and_then_runs() {
    check(Case::heard(State::Booting, Phase::Waiting), "write seeding\nstart");
    let handed = Case::heard(State::Seeding, Phase::Waiting).but(|case| case.sight().started = Some(Ok(())));
    check(handed, "waits for its agent to start the program");
    check(Case::heard(State::Seeding, Phase::Running), "write running");
    let refused = Case::heard(State::Seeding, Phase::Waiting).but(|case| {
        case.sight().started = Some(Err(Fault { message: "too big".to_owned(), retry: false }));
    });
    check(refused, "write end failed since 1000000 with 0 ms, \"too big\", draining\ndestroy in sandbox");
}

#[test]
fn a_satisfied_world_plans_nothing() {
    check(Case::heard(State::Running, Phase::Running), "");
    check(Case::heard(State::Running, Phase::BackingOff), "");
    check(Case::new(State::Gone), "");
    let plan = Case::heard(State::Running, Phase::Running).plan();
    assert_eq!(plan.next_wake, Some(Timestamp(NOW.0 + 60_000)), "it wakes at the deadline");
}

#[test]
fn a_machine_of_an_earlier_server_is_linked_and_told_its_lease() {
    check(Case::new(State::Running), "link\nset lease");
    check(
        Case::new(State::Draining).stopping(StopReason::Requested),
        "link\nwaits for its agent to be heard again until 15000",
    );
    let extended = Case::heard(State::Running, Phase::Running)
        .but(|case| case.machine().lease.deadline = Some(Timestamp(NOW.0 + 90_000)));
    check(extended, "set lease");
}

#[test]
fn a_program_that_ended_ends_its_machine_once_its_log_is_kept() {
    let exit = Exit { code: Some(3), signal: None, cause: ExitCause::Normal };
    let ended = |log_complete| {
        Case::heard(State::Running, Phase::Ended).but(|case| {
            case.sight().agent = Some(Agent { last_exit: Some(exit), log_complete, ..agent(Phase::Ended) });
            case.sight().ended_at = Some(NOW);
        })
    };
    let written = "write exit 3 normal, end exited since 1000000 with 0 ms, draining";
    check(ended(true), &format!("{written}\ndestroy in sandbox"));
    check(ended(false), &format!("{written}\nwaits for the rest of its log until 30000"));
    let at_once = ended(true).but(|case| case.machine().state = State::Booting);
    check(
        at_once,
        "write seeding, running, exit 3 normal, end exited since 1000000 with 0 ms, draining\ndestroy in sandbox",
    );
}

#[test]
fn a_lease_stops_and_then_destroys() {
    let running = |after| Case::heard(State::Running, Phase::Running).at(after);
    check(running(59_999), "");
    check(running(60_000), "write end expired since 1060000 with 10000 ms, draining\nstop with 10000 ms");
    check(running(64_000), "write end expired since 1060000 with 10000 ms, draining\nstop with 6000 ms");
    check(running(70_000), "write end expired since 1060000 with 10000 ms, draining\ndestroy in sandbox");
    let declared = Case::new(State::Declared).at(60_000);
    check(declared, "write end expired since 1060000 with 10000 ms, expired");
}

#[test]
fn what_an_agent_left_unheard_is_written_before_its_machine_is_closed() {
    let exit = Exit { code: Some(3), signal: None, cause: ExitCause::Normal };
    let destroyed =
        Case::heard(State::Draining, Phase::Ended).stopping(StopReason::Expired).absent().but(|case| {
            case.sight().destroyed = true;
            case.sight().agent = Some(Agent { linked: false, last_exit: Some(exit), ..agent(Phase::Ended) });
        });
    check(destroyed, "write exit 3 normal, expired");
}

#[test]
fn an_end_for_the_lease_is_expired_however_the_program_ended() {
    let exit = Exit { code: Some(0), signal: None, cause: ExitCause::Normal };
    let ended = |expired| {
        Case::heard(State::Running, Phase::Ended)
            .but(|case| {
                case.sight().agent = Some(Agent { last_exit: Some(exit), expired, ..agent(Phase::Ended) })
            })
            .at(59_500)
    };
    check(
        ended(true),
        "write exit 0 normal, end expired since 1059500 with 0 ms, draining\ndestroy in sandbox",
    );
    check(
        ended(false),
        "write exit 0 normal, end exited since 1059500 with 0 ms, draining\ndestroy in sandbox",
    );
}

#[test]
fn a_machine_that_went_away_at_its_deadline_has_expired() {
    let gone = |ms| Case::heard(State::Running, Phase::Running).absent().at(ms);
    check(gone(59_500), "write end expired since 1059500 with 0 ms, draining\ndestroy in sandbox");
    let long_before = gone(50_000).plan().actions[0].to_string();
    assert!(long_before.contains("end failed"), "{long_before}");
}

#[test]
fn a_stop_tells_the_agent_and_destroys_when_the_grace_is_over() {
    let stopping = |state, phase| Case::heard(state, phase).stopping(StopReason::Requested);
    let told = |after| {
        let told = Some((NOW, Duration::from_secs(10)));
        stopping(State::Draining, Phase::Stopping).but(|case| case.sight().stop_told = told).at(after)
    };
    check(stopping(State::Running, Phase::Running), "write draining\nstop with 10000 ms");
    check(told(14_999), "waits for its program to end until 15000");
    check(told(15_000), "destroy in sandbox");
    check(stopping(State::Seeding, Phase::Waiting), "write draining\ndestroy in sandbox");
    // Its first output may have been seen before the agent's word that it runs.
    let begun = stopping(State::Seeding, Phase::Waiting);
    let begun = begun.but(|case| case.sight().agent.as_mut().unwrap().starts = 1);
    check(begun, "write draining\nstop with 10000 ms");
    let ordered = stopping(State::Seeding, Phase::Waiting);
    check(ordered.but(|case| case.sight().started = Some(Ok(()))), "write draining\nstop with 10000 ms");
    check(Case::new(State::Declared).stopping(StopReason::Requested), "write gone");
    let deaf = stopping(State::Running, Phase::Running)
        .but(|case| case.sight().agent.as_mut().unwrap().linked = false);
    check(deaf, "write draining\nwaits for its program to end until 15000");
    let sooner = told(2_000).but(|case| {
        let grace = Duration::from_secs(3);
        case.machine().goal = Goal::Stop { since: NOW, grace, reason: StopReason::Requested };
    });
    check(sooner, "stop with 1000 ms");
}

#[test]
fn a_machine_that_is_gone_is_lost_but_only_by_a_list() {
    let lost = "write exit 125 machine-lost, end failed since 1000000 with 0 ms, \"the machine went away under its \
                program: its processes were killed or its host was restarted\", draining\ndestroy in sandbox";
    let running = || Case::heard(State::Running, Phase::Running);
    check(running().absent(), lost);
    let dies = |ended| {
        let dead = Listed { attempt: 1, alive: false, ended };
        move |case: &mut Case| {
            case.lists.get_mut(&DriverName::Sandbox).unwrap().machines.insert(id(1), dead);
        }
    };
    for ended in [None, Some(Ended::ByItself), Some(Ended::Killed)] {
        check(running().but(dies(ended)), lost);
    }
    check(running().absent().but(|case| case.lists.clear()), "");
    check(running().absent().but(|case| case.sight().settled = Tick(5)), "");
    let system = || running().but(|case| case.machine().kind = Kind::System);
    check(system().but(dies(Some(Ended::Killed))), lost);
    check(
        system().but(dies(Some(Ended::ByItself))),
        "write end exited since 1000000 with 0 ms, \"the system powered itself off\", draining\ndestroy in sandbox",
    );
    check(
        system().absent(),
        "write end exited since 1000000 with 0 ms, \"the system is no longer up: it was powered off, or its machine was killed\", draining\ndestroy in sandbox",
    );
}

#[test]
fn a_record_is_closed_only_by_a_list_taken_after_the_destruction() {
    let destroyed = |reason| {
        Case::new(State::Draining).stopping(reason).but(|case| {
            case.sight().destroyed = true;
            case.sight().settled = Tick(4);
        })
    };
    check(destroyed(StopReason::Exited).absent(), "write gone");
    check(destroyed(StopReason::Expired).absent(), "write expired");
    check(destroyed(StopReason::Failed).absent(), "write failed");
    let stale = destroyed(StopReason::Exited).absent().but(|case| case.sight().settled = Tick(5));
    check(stale, "waits for its driver's list");
    check(destroyed(StopReason::Exited), "destroy in sandbox");
    check(Case::new(State::Draining).stopping(StopReason::Failed).absent(), "link\ndestroy in sandbox");
}

#[test]
fn what_a_list_does_not_show_yet_may_exist_all_the_same() {
    // At a provider, by a server that has just started: its list lags.
    let at_provider = |case: Case, lag: bool| {
        case.absent().but(|case| {
            let machine = case.machine();
            let (node, _) = machine.placement.take().unwrap();
            machine.placement = Some((node, DriverName::DigitalOcean));
            let list = List { whole: !lag, ..listed_at(5, None) };
            case.lists.insert(DriverName::DigitalOcean, list);
        })
    };
    let lags = |case| at_provider(case, true);
    check(lags(Case::heard(State::Running, Phase::Running)), "");
    let destroyed =
        || Case::new(State::Draining).stopping(StopReason::Exited).but(|case| case.sight().destroyed = true);
    check(lags(destroyed()), "waits for its driver's list");
    check(at_provider(destroyed(), false), "write gone");
    // What this server alone ever asked for is known all the same.
    check(lags(destroyed()).but(|case| case.sight().ours = true), "write gone");
    // A creation that another server may have begun is repeated once it is known whether it was.
    check(lags(Case::new(State::Creating)), "waits for its driver's list");
    check(at_provider(Case::new(State::Creating), false), "create attempt 1");
    let shown = Listed { attempt: 1, alive: true, ended: None };
    let shown = lags(Case::new(State::Creating)).but(|case| {
        case.lists
            .insert(DriverName::DigitalOcean, List { whole: false, ..listed_at(5, Some((id(1), shown))) });
    });
    check(shown, "create attempt 1");
    // It shows an earlier creation of it: the last one may live.
    let earlier = |whole: bool| {
        lags(Case::new(State::Booting)).but(|case| {
            case.machine().attempt = 2;
            let shown = Listed { attempt: 1, alive: true, ended: None };
            let list = List { whole, ..listed_at(5, Some((id(1), shown))) };
            case.lists.insert(DriverName::DigitalOcean, list);
        })
    };
    check(earlier(false), "link\nset lease");
    let lost = "the machine went away under its program: its processes were killed or its host was restarted";
    check(
        earlier(true),
        &format!(
            "write exit 125 machine-lost, end failed since 1000000 with 0 ms, \"{lost}\", draining\nlink\ndestroy in digitalocean"
        ),
    );
    let failed = lags(Case::new(State::Creating)).but(|case| {
        let fault = Fault { message: "no space".to_owned(), retry: true };
        case.machine().attempt = 2;
        case.machine().state_since = Timestamp(NOW.0 - 1000);
        case.sight().created = Some(Created { attempt: 1, result: Err(fault) });
    });
    check(failed, "create attempt 2");
}

#[test]
fn a_machine_that_was_adopted_runs_without_an_agent_and_ends_with_its_lease() {
    let adopted = |state| {
        Case::new(state).but(|case| {
            let machine = case.machine();
            (machine.kind, machine.runs) = (Kind::System, Runs::Adopted);
            machine.placement = Some(("local".parse().unwrap(), DriverName::DigitalOcean));
            let (lease_told, attempt) = (Some(machine.lease), machine.attempt);
            *case.sight() = Sight { lease_told, ..Sight::default() };
            let there = Listed { attempt, alive: true, ended: None };
            case.lists.insert(DriverName::Sandbox, listed_at(5, None));
            case.lists.insert(DriverName::DigitalOcean, listed_at(5, Some((id(1), there))));
        })
    };
    let created = |result: Result<(), bool>, attempt| {
        adopted(State::Creating).but(|case| {
            let fault = |retry| Fault { message: "not now".to_owned(), retry };
            case.machine().attempt = attempt;
            case.sight().created = Some(Created { attempt, result: result.map_err(fault) });
        })
    };
    let declared = adopted(State::Declared).but(|case| {
        case.machine().placement = None;
        case.machine().wanted_driver = Some(DriverName::DigitalOcean);
        // Nothing is made: no door for agents is needed.
        case.drivers.usable.insert(DriverName::DigitalOcean, Err("no door".to_owned()));
    });
    check(declared, "write placed on local with digitalocean, creating 1\ncreate attempt 1");
    check(created(Ok(()), 1), "write booting, running");
    check(adopted(State::Running), "");
    check(
        adopted(State::Running).at(60_000),
        "write end expired since 1060000 with 10000 ms, draining\ndestroy in digitalocean",
    );
    let stopped = adopted(State::Running).stopping(StopReason::Requested);
    check(stopped, "write draining\ndestroy in digitalocean");
    // Where it has become ours and nobody heard so, its end would be the end of what somebody else made.
    let again =
        "write creating 9, \"attempt 8 failed: not now\"\nwaits for the pause after a failure until 4000";
    check(created(Err(true), 8), again);
    check(
        created(Err(false), 2),
        "write creating 3, \"attempt 2 failed: not now\"\nwaits for the pause after a failure until 2000",
    );
    check(
        created(Err(false), 1),
        "write end failed since 1000000 with 0 ms, \"not now\", draining\ndestroy in digitalocean",
    );
    let gone = adopted(State::Running)
        .but(|case| drop(case.lists.insert(DriverName::DigitalOcean, listed_at(5, None))));
    let why = "the machine is gone from its provider, or somebody took its tags away";
    check(
        gone,
        &format!("write end exited since 1000000 with 0 ms, \"{why}\", draining\ndestroy in digitalocean"),
    );
}

#[test]
fn a_host_that_was_adopted_is_linked_and_let_go_of_whatever_its_agent_says() {
    let host = |state, phase: Option<Phase>| {
        let case = match phase {
            Some(phase) => Case::heard(state, phase),
            None => Case::new(state),
        };
        case.but(|case| {
            let machine = case.machine();
            (machine.kind, machine.runs) = (Kind::System, Runs::Host);
            machine.placement = Some(("local".parse().unwrap(), DriverName::Ssh));
            let (lease_told, attempt) = (Some(machine.lease), machine.attempt);
            case.sight().lease_told = lease_told;
            let there = Listed { attempt, alive: true, ended: None };
            case.lists.insert(DriverName::Sandbox, listed_at(5, None));
            case.lists.insert(DriverName::Ssh, listed_at(5, Some((id(1), there))));
        })
    };
    check(host(State::Booting, None), "write running\nlink");
    check(host(State::Running, None), "link");
    // An agent that is new with each connection, or just ends with one.
    for phase in [Phase::Waiting, Phase::Stopping, Phase::Ended] {
        check(host(State::Running, Some(phase)), "");
        let stopped = host(State::Running, Some(phase)).stopping(StopReason::Requested);
        check(stopped, "write draining\ndestroy in ssh");
    }
    let refused = host(State::Creating, None).but(|case| {
        let fault = Fault { message: "not now".to_owned(), retry: true };
        case.machine().attempt = 8;
        case.sight().created = Some(Created { attempt: 8, result: Err(fault) });
    });
    check(refused, "write end failed since 1000000 with 0 ms, \"not now\", draining\ndestroy in ssh");
}

#[test]
fn strays_are_destroyed_where_every_record_was_read() {
    let stray = |state| {
        Case::new(state).but(|case| {
            let listed = Listed { attempt: 1, alive: true, ended: None };
            case.lists.get_mut(&DriverName::Qemu).unwrap().machines.insert(id(1), listed);
        })
    };
    check(stray(State::Gone), "destroy in qemu");
    check(stray(State::Gone).but(|case| case.machines.clear()), "destroy in qemu");
    check(stray(State::Gone).but(|case| case.complete = false), "");
    check(stray(State::Gone).but(|case| case.sight().settled = Tick(5)), "");
}

#[test]
fn ended_records_are_forgotten_on_request_and_by_age() {
    check(Case::new(State::Gone).but(|case| case.machine().remove = true), "forget");
    check(Case::heard(State::Running, Phase::Running).but(|case| case.machine().remove = true), "");
    let day = 24 * 3600 * 1000;
    check(Case::new(State::Gone).at(day - 1000), "");
    check(Case::new(State::Gone).at(day), "forget");
}

#[test]
fn the_oldest_ended_records_are_forgotten_above_the_limit() {
    let mut case = Case::new(State::Gone);
    for n in 2..=limits::RECORDS_KEEP_MAX as u128 + 3 {
        let state_since = Timestamp(NOW.0 + n as u64);
        case.machines.insert(id(n), Machine { state_since, ..machine(n, State::Gone) });
    }
    let forgotten: Vec<_> = case.plan().actions.iter().map(Action::id).collect();
    assert_eq!(forgotten, [id(1), id(2), id(3)]);
}

#[test]
fn a_failed_effect_is_followed_by_a_pause() {
    let paused = || {
        Case::heard(State::Booting, Phase::Waiting)
            .but(|case| case.sight().pause_until = Some(Timestamp(NOW.0 + 200)))
    };
    check(paused(), "write seeding\nwaits for the pause after a failure until 200");
    check(paused().at(200), "write seeding\nstart");
}

#[test]
fn a_record_that_could_not_be_written_is_tried_again_after_a_pause_and_nothing_follows_before() {
    let unwritten = || {
        Case::heard(State::Booting, Phase::Waiting)
            .but(|case| case.sight().unwritten_until = Some(Timestamp(NOW.0 + 200)))
    };
    check(unwritten(), "waits for the pause after a failure until 200");
    check(unwritten().at(200), "write seeding\nstart");
}
