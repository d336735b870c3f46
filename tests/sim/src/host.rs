//! The host: machines that live by themselves, whatever becomes of the server.

use calve_core::ExitCause;
use calve_wire::agent::{Phase, Status};
use calve_wire::machine::Exit;

use crate::rng::Rng;

/// Milliseconds since the epoch.
pub type Ms = u64;

/// How long a machine may outlive the end of its lease while a server lives: a slow creation or destruction (20 s in
/// each of three moments), pauses after failures (5 s each), and a server or agent that stood still for 20 s.
pub const OVERRUN_MAX: Ms = 190_000;
/// How long an agent or a server may stand still.
pub const PAUSE_MAX: Ms = 20_000;

/// A machine on a host.
#[derive(Debug, Clone)]
pub struct Vm {
    pub attempt: u32,
    /// Whether its creation came to its end; otherwise there is a run directory and no process.
    pub complete: bool,
    pub alive: bool,
    /// When its agent begins to listen.
    pub boots_at: Ms,
    pub phase: Phase,
    pub starts: u32,
    pub last_exit: Option<Exit>,
    /// Whether its agent ended it for its lease.
    expired: bool,
    /// Whether it is a service.
    restarts: bool,
    /// When the program ends by itself.
    program_ends_at: Option<Ms>,
    starts_again_at: Option<Ms>,
    /// Told to end: when the program obeys SIGTERM, and when SIGKILL comes.
    stopping: Option<(Ms, Ms)>,
    /// The lease that its agent knows: deadline and grace.
    pub lease: (Option<Ms>, u64),
    /// Whether its agent and guard work; otherwise only the server ends it.
    pub enforces: bool,
    /// When it is killed from outside.
    dies_at: Option<Ms>,
    ended_at: Option<Ms>,
    /// How long after its end the last of the log comes.
    log_lag: u64,
    /// It stands still until then.
    paused_until: Ms,
    /// How many thousandths its clock is too fast.
    drift: u64,
    /// Whether it is a host that was there before: nothing ends it, it is let go of.
    pub adopted: Option<String>,
}

impl Vm {
    /// A machine that was just made.
    pub fn new(attempt: u32, restarts: bool, lease: (Option<Ms>, u64), now: Ms, rng: &mut Rng) -> Self {
        let boots_at = match rng.range(0, 100) {
            0 => Ms::MAX,
            1..10 => now + rng.range(1000, 20_000),
            _ => now + rng.range(0, 200),
        };
        Self {
            attempt,
            complete: true,
            alive: true,
            boots_at,
            phase: Phase::Waiting,
            starts: 0,
            last_exit: None,
            expired: false,
            restarts,
            program_ends_at: None,
            starts_again_at: None,
            stopping: None,
            lease,
            enforces: !rng.chance(100),
            dies_at: rng.chance(50).then(|| now + rng.range(0, 60_000)),
            ended_at: None,
            log_lag: if rng.chance(20) { 3_600_000 } else { rng.range(0, 300) },
            paused_until: 0,
            drift: rng.pick(&[0, 0, 0, 1, 10]),
            adopted: None,
        }
    }

    /// A host that was adopted under this name.
    pub fn adopted(name: &str, attempt: u32, now: Ms, rng: &mut Rng) -> Self {
        let new = Self::new(attempt, false, (None, 0), now, rng);
        let boots_at = now + rng.range(0, 200);
        // Each talk has an agent of its own, and what that says of itself says nothing of the host.
        let phase = rng.pick(&[Phase::Waiting, Phase::Waiting, Phase::Ended]);
        Self { boots_at, phase, enforces: false, dies_at: None, adopted: Some(name.to_owned()), ..new }
    }

    /// What a creation that was cut off leaves.
    pub fn partial(attempt: u32, now: Ms, rng: &mut Rng) -> Self {
        let lives = rng.chance(300);
        let whole = Self::new(attempt, false, (None, 0), now, rng);
        Self { complete: false, alive: lives, boots_at: Ms::MAX, enforces: false, ..whole }
    }

    /// Lets it stand still.
    pub fn pause(&mut self, until: Ms) {
        self.paused_until = until;
    }

    /// Tells it its lease; a clock that is too fast makes it shorter.
    pub fn tell_lease(&mut self, (deadline, grace): (Option<Ms>, u64), now: Ms) {
        let drifted = |deadline: Ms| {
            let left = deadline.saturating_sub(now);
            deadline - left * self.drift / 1000
        };
        self.lease = (deadline.map(drifted), grace);
    }

    pub fn speaks(&self, now: Ms) -> bool {
        self.alive && self.boots_at <= now && self.paused_until <= now
    }

    /// Whether the program has begun and not ended for good.
    pub fn works(&self) -> bool {
        self.alive && matches!(self.phase, Phase::Running | Phase::BackingOff | Phase::Stopping)
    }

    pub fn log_complete(&self, now: Ms) -> bool {
        self.ended_at.is_some_and(|at| at + self.log_lag <= now)
    }

    pub fn status(&self) -> Status {
        Status {
            phase: self.phase,
            starts: self.starts,
            ends: self.starts - u32::from(matches!(self.phase, Phase::Running | Phase::Stopping)),
            last_exit: self.last_exit,
            expired: self.expired,
            ..Status::waiting()
        }
    }

    pub fn start(&mut self, now: Ms, rng: &mut Rng) {
        if self.phase == Phase::Waiting && self.stopping.is_none() {
            self.run(now, rng);
        }
    }

    pub fn stop(&mut self, grace: u64, now: Ms, rng: &mut Rng) {
        if self.phase == Phase::Ended {
            return;
        }
        let kill_at = now + grace;
        let (obeys_at, kill_before) = self.stopping.unwrap_or((now + rng.range(0, 15_000), Ms::MAX));
        self.stopping = Some((obeys_at, kill_at.min(kill_before)));
        match self.phase {
            Phase::Running => self.phase = Phase::Stopping,
            Phase::Waiting | Phase::BackingOff => self.end(self.last_exit, now),
            Phase::Stopping | Phase::Ended => {}
        }
    }

    /// Does what is due; gives when something is due next.
    pub fn step(&mut self, now: Ms, rng: &mut Rng) -> Option<Ms> {
        if !self.alive {
            return None;
        }
        if self.paused_until > now {
            return Some(self.paused_until);
        }
        let (deadline, grace) = if self.enforces { self.lease } else { (None, 0) };
        let gone_at = deadline.map(|deadline| deadline + grace);
        if self.dies_at.is_some_and(|at| at <= now) || gone_at.is_some_and(|at| at <= now) {
            self.alive = false;
            return None;
        }
        if deadline.is_some_and(|at| at <= now) && self.stopping.is_none() {
            self.expired |= self.phase != Phase::Ended;
            self.stop(grace, now, rng);
        }
        if let Some((obeys_at, kill_at)) = self.stopping
            && self.phase == Phase::Stopping
            && obeys_at.min(kill_at) <= now
        {
            let signal = if obeys_at <= kill_at { 15 } else { 9 };
            self.end(Some(Exit { code: None, signal: Some(signal), cause: ExitCause::Normal }), now);
        }
        if self.phase == Phase::Running && self.program_ends_at.is_some_and(|at| at <= now) {
            self.program_exits(now, rng);
        }
        if self.phase == Phase::BackingOff && self.starts_again_at.is_some_and(|at| at <= now) {
            self.run(now, rng);
        }
        let stopping = self.stopping.map(|(obeys_at, kill_at)| obeys_at.min(kill_at));
        let due = [
            deadline.filter(|_| self.stopping.is_none()),
            gone_at,
            self.dies_at,
            Some(self.boots_at),
            stopping.filter(|_| self.phase == Phase::Stopping),
            self.program_ends_at.filter(|_| self.phase == Phase::Running),
            self.starts_again_at.filter(|_| self.phase == Phase::BackingOff),
            self.ended_at.map(|at| at + self.log_lag),
        ];
        due.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn run(&mut self, now: Ms, rng: &mut Rng) {
        self.phase = Phase::Running;
        self.starts += 1;
        self.program_ends_at = (!rng.chance(300)).then(|| now + rng.range(0, 60_000));
    }

    fn program_exits(&mut self, now: Ms, rng: &mut Rng) {
        let exit = Exit { code: Some(rng.range(0, 3) as i32), signal: None, cause: ExitCause::Normal };
        if self.restarts && self.starts < 4 {
            (self.phase, self.last_exit) = (Phase::BackingOff, Some(exit));
            self.starts_again_at = Some(now + rng.range(100, 5_000));
        } else {
            self.end(Some(exit), now);
        }
    }

    fn end(&mut self, exit: Option<Exit>, now: Ms) {
        (self.phase, self.last_exit, self.ended_at) = (Phase::Ended, exit, Some(now));
    }
}
