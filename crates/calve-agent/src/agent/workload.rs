//! What becomes of the workload: pure decisions. Time is an argument, effects are [`Action`]s.

use std::time::{Duration, Instant};

use calve_wire::agent::Phase;
use calve_wire::machine::{Exit, ExitCause, Restart};

/// First pause before a restart.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a restart: each one doubles up to here.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A program that ran this long begins with the first pause again.
pub const HEALTHY_RUN: Duration = Duration::from_secs(10);
/// Time between SIGTERM and SIGKILL for an unhealthy service that is to be restarted.
pub const UNHEALTHY_GRACE: Duration = Duration::from_secs(10);

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The server wants it started.
    Start {
        /// Whether there is a program, or the machine is the workload.
        program: bool,
        /// When it is started again.
        restart: Restart,
    },
    /// The program runs.
    Started,
    /// The program cannot be started; the code with which a shell says so.
    NotStarted(i32),
    /// The program has ended; `cause` may be anything but `NotStarted`.
    Exited(Exit),
    /// Init has ended and took everything with it: what that is for a program which had not ended for good.
    Lost(Exit),
    /// Nothing is left alive in the machine: the answer to [`Action::KillAll`].
    Empty,
    /// All of its output is in the log: the answer to [`Action::Drain`].
    Drained,
    /// The health check has decided.
    Health(bool),
    /// It shall end, with this long between SIGTERM and SIGKILL.
    Stop(Duration),
    /// Time has passed, see [`Workload::next_tick`].
    Tick,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program.
    Start,
    /// Send a signal to the program's group.
    Signal(i32),
    /// Begin an orderly end of a machine that is the workload itself.
    ShutDown,
    /// Kill everything in the machine.
    KillAll,
    /// Read what is left of the ended program's output.
    Drain,
}

/// Where a workload stands, and why.
///
/// ```text
///            Start          Started             Stop            kill time
///  Waiting ────────▶ Starting ────▶ Running ──────────▶ Stopping ────────▶ (KillAll)
///     │                 ▲  │ NotStarted │ Exited           │ Exited             │
///     │                 │  ▼            ▼ (to restart)     │                    │
///     │                Pausing ◀── Draining               ▼     Empty, Exited   ▼   Drained
///     └───────────────── Stop ──────────────────────▶ Emptying ─────────────▶ Flushing ────▶ Ended
/// ```
/// Owner: the supervisor of `agent.rs`, which feeds every input and performs every action.
#[derive(Debug)]
pub struct Workload {
    stage: Stage,
    program: bool,
    restart: Restart,
    backoff: Duration,
    /// When everything is killed, once a stop was asked.
    stop_at: Option<Instant>,
    starts: u32,
    ends: u32,
    last_exit: Option<Exit>,
    healthy: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Starting,
    Running {
        since: Instant,
    },
    /// SIGTERM was sent; `restart` is when an unhealthy program is killed to be started again.
    Stopping {
        restart: Option<Instant>,
    },
    Draining,
    Pausing {
        until: Instant,
    },
    /// Everything is being killed.
    Emptying {
        program_alive: bool,
        empty: bool,
    },
    Flushing,
    Ended,
}

impl Workload {
    /// A workload that was not started.
    pub fn new() -> Self {
        Self {
            stage: Stage::Waiting,
            program: false,
            restart: Restart::Never,
            backoff: BACKOFF_FIRST,
            stop_at: None,
            starts: 0,
            ends: 0,
            last_exit: None,
            healthy: None,
        }
    }

    /// Takes in what has happened and says what is to be done. Inputs that do not fit the stage change nothing.
    pub fn take(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Start { program, restart } => self.start(program, restart, now),
            Input::Started => self.started(now),
            Input::NotStarted(code) => {
                self.exited(Exit { code: Some(code), signal: None, cause: ExitCause::NotStarted }, now)
            }
            Input::Exited(exit) => self.exited(exit, now),
            Input::Lost(exit) => self.lost(exit),
            Input::Empty => self.empty(),
            Input::Drained => self.drained(now),
            Input::Health(healthy) => self.health(healthy, now),
            Input::Stop(grace) => self.stop(grace, now),
            Input::Tick => self.tick(now),
        }
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_tick(&self) -> Option<Instant> {
        match self.stage {
            Stage::Pausing { until } => Some(until),
            Stage::Stopping { restart } => self.stop_at.or(restart),
            Stage::Starting => self.stop_at,
            Stage::Waiting
            | Stage::Running { .. }
            | Stage::Draining
            | Stage::Emptying { .. }
            | Stage::Flushing
            | Stage::Ended => None,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Ended => Phase::Ended,
            Stage::Emptying { .. } | Stage::Flushing => Phase::Stopping,
            _ if self.stop_at.is_some() => Phase::Stopping,
            Stage::Waiting => Phase::Waiting,
            Stage::Starting if self.starts <= 1 => Phase::Waiting,
            Stage::Starting | Stage::Draining | Stage::Pausing { .. } => Phase::BackingOff,
            Stage::Running { .. } => Phase::Running,
            Stage::Stopping { .. } => Phase::BackingOff,
        }
    }

    /// Whether commands may be started in the machine.
    pub fn takes_commands(&self) -> bool {
        !matches!(self.stage, Stage::Emptying { .. } | Stage::Flushing | Stage::Ended)
    }

    /// How often the program was started.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// How often the program ended.
    pub fn ends(&self) -> u32 {
        self.ends
    }

    /// How the program ended last.
    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit
    }

    /// What the health check has decided for the present run.
    pub fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    fn start(&mut self, program: bool, restart: Restart, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Waiting {
            return vec![];
        }
        (self.program, self.restart, self.starts) = (program, restart, 1);
        if !program {
            self.stage = Stage::Running { since: now };
            return vec![];
        }
        self.stage = Stage::Starting;
        vec![Action::Start]
    }

    fn started(&mut self, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Starting {
            return vec![];
        }
        self.healthy = None;
        if self.stop_at.is_some() {
            self.stage = Stage::Stopping { restart: None };
            return vec![Action::Signal(libc::SIGTERM)];
        }
        self.stage = Stage::Running { since: now };
        vec![]
    }

    fn exited(&mut self, exit: Exit, now: Instant) -> Vec<Action> {
        let forced = matches!(self.stage, Stage::Stopping { restart: Some(_) });
        match &mut self.stage {
            Stage::Emptying { program_alive, .. } => {
                // One that has ended stays as it did, whatever happens to the rest of the machine.
                if std::mem::take(program_alive) {
                    (self.last_exit, self.ends) = (Some(exit), self.starts);
                }
                return self.flush_when_empty();
            }
            Stage::Running { since } => {
                if now.duration_since(*since) >= HEALTHY_RUN {
                    self.backoff = BACKOFF_FIRST;
                }
            }
            Stage::Starting | Stage::Stopping { .. } => {}
            Stage::Waiting | Stage::Draining | Stage::Pausing { .. } | Stage::Flushing | Stage::Ended => {
                return vec![];
            }
        }
        (self.last_exit, self.ends) = (Some(exit), self.starts);
        self.healthy = None;
        let again = match self.restart {
            Restart::Never => false,
            Restart::OnFailure => forced || exit.code != Some(0),
            Restart::Always => true,
        };
        if again && self.stop_at.is_none() {
            self.stage = Stage::Draining;
            return vec![Action::Drain];
        }
        self.stage = Stage::Emptying { program_alive: false, empty: false };
        vec![Action::KillAll]
    }

    fn lost(&mut self, exit: Exit) -> Vec<Action> {
        match self.stage {
            Stage::Flushing | Stage::Ended => return vec![],
            Stage::Emptying { program_alive: false, .. } => {}
            _ => (self.last_exit, self.ends) = (Some(exit), self.starts),
        }
        self.healthy = None;
        self.kill(false)
    }

    fn empty(&mut self) -> Vec<Action> {
        if let Stage::Emptying { empty, .. } = &mut self.stage {
            *empty = true;
        }
        self.flush_when_empty()
    }

    fn flush_when_empty(&mut self) -> Vec<Action> {
        if self.stage != (Stage::Emptying { program_alive: false, empty: true }) {
            return vec![];
        }
        self.stage = Stage::Flushing;
        vec![Action::Drain]
    }

    fn drained(&mut self, now: Instant) -> Vec<Action> {
        match self.stage {
            Stage::Flushing => self.stage = Stage::Ended,
            Stage::Draining if self.stop_at.is_some() => return self.kill(false),
            Stage::Draining => {
                self.stage = Stage::Pausing { until: now + self.backoff };
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            }
            _ => {}
        }
        vec![]
    }

    fn health(&mut self, healthy: bool, now: Instant) -> Vec<Action> {
        if !matches!(self.stage, Stage::Running { .. }) {
            return vec![];
        }
        self.healthy = Some(healthy);
        if healthy || !self.program || self.restart == Restart::Never {
            return vec![];
        }
        self.stage = Stage::Stopping { restart: Some(now + UNHEALTHY_GRACE) };
        vec![Action::Signal(libc::SIGTERM)]
    }

    fn stop(&mut self, grace: Duration, now: Instant) -> Vec<Action> {
        let asked = now.checked_add(grace);
        let first = self.stop_at.is_none();
        // A repeated stop shortens the grace and never lengthens it. One that time cannot hold is a very long one.
        self.stop_at = match (self.stop_at, asked) {
            (Some(earlier), Some(asked)) => Some(earlier.min(asked)),
            (earlier, asked) => earlier.or(asked).or(Some(now + Duration::from_secs(u32::MAX.into()))),
        };
        match self.stage {
            Stage::Waiting | Stage::Pausing { .. } => self.kill(false),
            Stage::Running { .. } if first => {
                self.stage = Stage::Stopping { restart: None };
                vec![if self.program { Action::Signal(libc::SIGTERM) } else { Action::ShutDown }]
            }
            Stage::Stopping { .. } => {
                self.stage = Stage::Stopping { restart: None };
                self.tick(now)
            }
            // The stop is seen once the program runs (or never does in time), or its output is read.
            Stage::Running { .. } | Stage::Starting | Stage::Draining => vec![],
            Stage::Emptying { .. } | Stage::Flushing | Stage::Ended => vec![],
        }
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        let stop_due = self.stop_at.is_some_and(|at| at <= now);
        match self.stage {
            Stage::Pausing { until } if until <= now => {
                self.starts = self.starts.saturating_add(1);
                self.stage = Stage::Starting;
                vec![Action::Start]
            }
            Stage::Starting | Stage::Stopping { .. } if stop_due => self.kill(self.program),
            Stage::Stopping { restart: Some(at) } if at <= now => {
                // Far away: the group is dead with this, and only its end is waited for.
                self.stage = Stage::Stopping { restart: Some(at + UNHEALTHY_GRACE) };
                vec![Action::Signal(libc::SIGKILL)]
            }
            _ => vec![],
        }
    }

    fn kill(&mut self, program_alive: bool) -> Vec<Action> {
        self.stage = Stage::Emptying { program_alive, empty: false };
        vec![Action::KillAll]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Exit = Exit { code: Some(0), signal: None, cause: ExitCause::Normal };
    const FAILED: Exit = Exit { code: Some(1), signal: None, cause: ExitCause::Normal };

    fn running(restart: Restart, now: Instant) -> Workload {
        let mut workload = Workload::new();
        assert_eq!(workload.take(Input::Start { program: true, restart }, now), [Action::Start]);
        assert_eq!(workload.phase(), Phase::Waiting);
        assert_eq!(workload.take(Input::Started, now), []);
        assert_eq!(workload.phase(), Phase::Running);
        workload
    }

    #[test]
    fn a_job_ends_once_nothing_is_alive_and_its_output_is_read() {
        let now = Instant::now();
        let mut job = running(Restart::Never, now);
        assert_eq!(job.take(Input::Start { program: true, restart: Restart::Never }, now), []);
        assert_eq!(job.take(Input::Exited(OK), now), [Action::KillAll]);
        assert_eq!(job.phase(), Phase::Stopping);
        assert_eq!(job.take(Input::Empty, now), [Action::Drain]);
        assert_eq!(job.take(Input::Drained, now), []);
        assert_eq!((job.phase(), job.last_exit()), (Phase::Ended, Some(OK)));
        assert_eq!((job.starts(), job.ends()), (1, 1));
        assert_eq!(job.take(Input::Stop(Duration::ZERO), now), []);
    }

    #[test]
    fn a_stop_kills_after_its_grace_and_a_second_one_only_shortens_it() {
        let now = Instant::now();
        let mut job = running(Restart::Always, now);
        assert_eq!(job.take(Input::Stop(Duration::from_secs(10)), now), [Action::Signal(libc::SIGTERM)]);
        assert_eq!(job.take(Input::Stop(Duration::from_secs(60)), now), []);
        assert_eq!(job.next_tick(), Some(now + Duration::from_secs(10)));
        assert_eq!(job.take(Input::Stop(Duration::from_secs(2)), now), []);
        let due = now + Duration::from_secs(2);
        assert_eq!(job.next_tick(), Some(due));
        assert_eq!(job.take(Input::Tick, due), [Action::KillAll]);
        // The order in which the two are told does not matter.
        assert_eq!(job.take(Input::Empty, due), []);
        assert_eq!(job.take(Input::Exited(FAILED), due), [Action::Drain]);
        job.take(Input::Drained, due);
        assert_eq!(job.phase(), Phase::Ended);
    }

    #[test]
    fn restarts_pause_longer_each_time_until_a_healthy_run() {
        let mut now = Instant::now();
        let mut service = running(Restart::OnFailure, now);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert_eq!(service.take(Input::Exited(FAILED), now), [Action::Drain]);
            service.take(Input::Drained, now);
            assert_eq!(service.phase(), Phase::BackingOff);
            let until = service.next_tick().expect("a pause");
            pauses.push((until - now).as_millis());
            now = until;
            assert_eq!(service.take(Input::Tick, now), [Action::Start]);
            service.take(Input::Started, now);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        now += HEALTHY_RUN;
        service.take(Input::Exited(FAILED), now);
        service.take(Input::Drained, now);
        assert_eq!(service.next_tick(), Some(now + BACKOFF_FIRST));
        assert_eq!(service.starts(), 12);
    }

    #[test]
    fn on_failure_means_what_it_says() {
        let now = Instant::now();
        let mut service = running(Restart::OnFailure, now);
        assert_eq!(service.take(Input::Exited(OK), now), [Action::KillAll]);
        let mut service = Workload::new();
        service.take(Input::Start { program: true, restart: Restart::OnFailure }, now);
        assert_eq!(service.take(Input::NotStarted(127), now), [Action::Drain]);
        assert_eq!(service.last_exit().map(|exit| exit.cause), Some(ExitCause::NotStarted));
    }

    #[test]
    fn an_unhealthy_service_is_restarted_and_an_unhealthy_job_only_reported() {
        let now = Instant::now();
        let mut job = running(Restart::Never, now);
        assert_eq!(job.take(Input::Health(false), now), []);
        assert_eq!((job.phase(), job.healthy()), (Phase::Running, Some(false)));
        let mut service = running(Restart::OnFailure, now);
        assert_eq!(service.take(Input::Health(false), now), [Action::Signal(libc::SIGTERM)]);
        let due = service.next_tick().expect("a grace");
        assert_eq!(service.take(Input::Tick, due), [Action::Signal(libc::SIGKILL)]);
        assert_eq!(service.take(Input::Exited(OK), due), [Action::Drain]);
    }

    #[test]
    fn a_stop_at_any_moment_leads_to_the_end() {
        let now = Instant::now();
        let start = Input::Start { program: true, restart: Restart::Always };
        let prefixes: [&[Input]; 6] = [
            &[],
            &[start],
            &[start, Input::Started],
            &[start, Input::Started, Input::Health(false)],
            &[start, Input::Started, Input::Exited(FAILED)],
            &[start, Input::Started, Input::Exited(FAILED), Input::Drained],
        ];
        for prefix in prefixes {
            let mut workload = Workload::new();
            let mut todo: Vec<Action> = Vec::new();
            for input in prefix.iter().chain([&Input::Stop(Duration::ZERO)]) {
                todo = workload.take(*input, now);
            }
            if prefix.len() == 1 {
                todo = workload.take(Input::Started, now);
            }
            if matches!(prefix.last(), Some(Input::Exited(_))) {
                todo = workload.take(Input::Drained, now);
            }
            if todo == [Action::Signal(libc::SIGTERM)] {
                todo = workload.take(Input::Tick, now);
            }
            assert_eq!(todo, [Action::KillAll], "{prefix:?}");
            assert_eq!(workload.phase(), Phase::Stopping);
            workload.take(Input::Exited(FAILED), now);
            workload.take(Input::Empty, now);
            workload.take(Input::Drained, now);
            assert_eq!(workload.phase(), Phase::Ended, "{prefix:?}");
        }
    }

    #[test]
    fn a_lost_init_is_the_end_and_changes_no_end_that_was_for_good() {
        let now = Instant::now();
        let lost = Exit { code: None, signal: Some(9), cause: ExitCause::OutOfMemory };
        let end = |mut workload: Workload| {
            assert_eq!(workload.take(Input::Lost(lost), now), [Action::KillAll]);
            // What was on its way changes nothing.
            workload.take(Input::NotStarted(126), now);
            workload.take(Input::Empty, now);
            workload.take(Input::Drained, now);
            assert_eq!(workload.phase(), Phase::Ended);
            (workload.last_exit().expect("it ended"), workload.ends())
        };
        assert_eq!(end(running(Restart::Always, now)), (lost, 1));
        let mut pausing = running(Restart::Always, now);
        pausing.take(Input::Exited(FAILED), now);
        assert_eq!(end(pausing), (lost, 1));
        let mut ended = running(Restart::Never, now);
        ended.take(Input::Exited(FAILED), now);
        assert_eq!(end(ended), (FAILED, 1));
    }

    #[test]
    fn a_machine_without_a_program_runs_until_it_is_stopped() {
        let now = Instant::now();
        let mut machine = Workload::new();
        machine.take(Input::Start { program: false, restart: Restart::Never }, now);
        assert_eq!(machine.phase(), Phase::Running);
        assert_eq!(machine.take(Input::Stop(Duration::ZERO), now), [Action::ShutDown]);
        assert_eq!(machine.take(Input::Tick, now), [Action::KillAll]);
        assert_eq!(machine.take(Input::Empty, now), [Action::Drain]);
    }
}
