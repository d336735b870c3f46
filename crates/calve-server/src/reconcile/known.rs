//! What the loop knows of machines beyond their records, and what it says of it in events.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use calve_core::plan::{Agent, Created, Fault, Phase, Sight, Tick};
use calve_core::{Goal, Machine, MachineId, State, Timestamp};
use calve_wire::agent::{self, Status};
use calve_wire::event::What;

use super::step::{Effect, Outcome};
use super::{AgentReport, Effects};

/// Pause after the first failure of an effect on a machine; each further failure in a row doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such pause: bounds how late a stop or a destruction gets by a failure before it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause before a lease is told again to a machine that does not answer: it ends at the deadline that it knows all
/// the same. What was decided meanwhile does not wait for this ([`Known::hurry`]).
const LEASE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pauses from here on end at whole multiples of this: machines that are away are tried again in a few rounds a second, not
/// each in a round of its own.
const PAUSE_STEP: Duration = Duration::from_millis(250);
/// Effects that failed are tried again at most so often a second, of all machines together: where more machines are away
/// than that, their retries must not take the processor from those that are there.
const RETRIES_MAX_PER_SECOND: u32 = 500;

/// Machines whose failures are written to the log by themselves at the same time: what makes more than these fail is the same
/// for all, and thousands of lines at once would hold up everything else.
const TOLD_MAX: usize = 100;

/// What is known of each machine.
#[derive(Default)]
pub struct Known {
    /// Of each machine, what planning takes into account.
    pub sights: BTreeMap<MachineId, Sight>,
    failures: BTreeMap<MachineId, Failures>,
    /// Those of them that failed since [`Self::hurry`] looked.
    just_failed: Vec<MachineId>,
    tick: u64,
}

/// Failures in a row of effects on one machine.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    /// The machine's goal at the last of them.
    goal: Goal,
}

/// What was being done, as the outcome is understood by it.
#[derive(Debug, Clone, Copy)]
pub struct Doing {
    /// The machine.
    pub id: MachineId,
    /// The effect, where there is one.
    pub effect: Option<Effect>,
    /// Whether its agent is linked.
    pub link: bool,
    /// The stop that the agent is told, where it is.
    pub goal: Goal,
    /// Whether this is the first time that this attempt is made.
    pub fresh: bool,
}

impl Known {
    /// The next position in the order of things.
    pub fn tick(&mut self) -> Tick {
        self.tick += 1;
        Tick(self.tick)
    }

    /// Takes note of what is about to be done.
    pub fn begin(&mut self, doing: &Doing) {
        let sight = self.sights.entry(doing.id).or_default();
        sight.busy = true;
        sight.link_asked |= doing.link;
        // Each later attempt follows one of which somebody knows: the first is this loop's, or they are not all.
        sight.ours |= doing.fresh && matches!(doing.effect, Some(Effect::Create { attempt: 1 }));
    }

    /// Takes note of what became of it.
    pub fn end(&mut self, doing: &Doing, outcome: Outcome, now: Timestamp) {
        let settled = self.tick();
        let sight = self.sights.entry(doing.id).or_default();
        sight.busy = false;
        let mut unwritten = false;
        let failed = match outcome {
            Outcome::Conflict => {
                sight.link_asked &= !doing.link;
                return;
            }
            Outcome::NotWritten(error) => {
                // Once is enough: it is tried again and again.
                if !self.failures.contains_key(&doing.id) {
                    tracing::warn!(machine = %doing.id, error = &error as &dyn std::error::Error, "not written");
                }
                sight.link_asked &= !doing.link;
                unwritten = true;
                true
            }
            Outcome::Done { lease, result } => {
                match &result {
                    Ok(()) => {}
                    // Once is enough: it is tried again and again.
                    Err(fault) if self.failures.contains_key(&doing.id) => {
                        tracing::debug!(machine = %doing.id, effect = ?doing.effect, "failed again: {}", fault.message);
                    }
                    Err(fault) if self.failures.len() < TOLD_MAX => {
                        tracing::warn!(machine = %doing.id, effect = ?doing.effect, "failed: {}", fault.message);
                    }
                    Err(fault) => {
                        if self.failures.len() == TOLD_MAX {
                            tracing::warn!("so many machines fail that further ones are not told one by one");
                        }
                        tracing::debug!(machine = %doing.id, effect = ?doing.effect, "failed: {}", fault.message);
                    }
                }
                let failed = result.is_err() && !matches!(doing.effect, Some(Effect::Create { .. }));
                let again = matches!(doing.effect, Some(Effect::Destroy { .. })) && sight.destroyed;
                match doing.effect {
                    Some(Effect::Create { attempt }) => {
                        sight.settled = settled;
                        sight.lease_told = lease.filter(|_| doing.fresh);
                        sight.created = Some(Created { attempt, result });
                    }
                    Some(Effect::Start) => sight.started = Some(result),
                    Some(Effect::SetLease) if result.is_ok() => sight.lease_told = lease,
                    Some(Effect::Stop { .. }) if result.is_ok() => {
                        sight.stop_told = match doing.goal {
                            Goal::Stop { since, grace, .. } => Some((since, grace)),
                            Goal::Run => None,
                        };
                    }
                    Some(Effect::Destroy { .. }) => {
                        sight.settled = settled;
                        sight.destroyed |= result.is_ok();
                        sight.link_asked = false;
                    }
                    Some(Effect::SetLease | Effect::Stop { .. } | Effect::Forget) | None => {}
                }
                // A destruction that had to be repeated did not work either.
                failed || again
            }
        };
        if failed {
            let crowd = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
            let failures = self.failures.entry(doing.id).or_insert(Failures { count: 0, goal: doing.goal });
            let longest = match doing.effect {
                Some(Effect::SetLease) => LEASE_PAUSE_MAX,
                _ => PAUSE_MAX,
            };
            let pause = PAUSE_MIN.saturating_mul(1 << failures.count.min(10));
            let pause = pause.max(Duration::from_secs(1) * crowd / RETRIES_MAX_PER_SECOND).min(longest);
            let until = Some(pause_end(doing.id, now, pause));
            if unwritten {
                sight.unwritten_until = until
            } else {
                sight.pause_until = until
            }
            *failures = Failures { count: failures.count + 1, goal: doing.goal };
            self.just_failed.push(doing.id);
        } else if sight.unwritten_until.take().is_some() || doing.effect.is_some() {
            sight.pause_until = None;
            self.failures.remove(&doing.id);
        }
    }

    /// Takes note of what agents say, and writes the events that follow from it. Gives whether some agent that was heard
    /// is not heard any more.
    pub fn hear(
        &mut self,
        reports: &BTreeMap<MachineId, AgentReport>,
        machines: &BTreeMap<MachineId, Machine>,
        effects: &dyn Effects,
        now: Timestamp,
    ) -> bool {
        let mut lost = false;
        for (id, report) in reports {
            let Some(machine) = machines.get(id).filter(|machine| !machine.state.is_terminal()) else {
                continue;
            };
            let sight = self.sights.entry(*id).or_default();
            let agent = understand(report);
            if sight.agent == Some(agent) {
                continue;
            }
            let before = sight.agent.replace(agent);
            lost |= before.is_some_and(|before| before.linked) && !agent.linked;
            if agent.linked && before.is_none_or(|before| !before.linked) {
                // It may be a new agent, or the old one may not have heard.
                (sight.started, sight.stop_told) = (None, None);
                // What failed for want of it need not wait any longer.
                sight.pause_until = None;
                self.failures.remove(id);
            }
            if agent.phase == Some(Phase::Ended) {
                sight.ended_at.get_or_insert(now);
            }
            // A machine that ran before this loop began has had its events.
            let ran = matches!(machine.state, State::Running | State::Draining);
            if let Some(before) =
                before.filter(|before| before.phase.is_some() || !ran).or((!ran).then_some(SILENT))
            {
                let status = report.status.as_ref();
                let because = status.and_then(|status| status.unhealthy_because.as_deref());
                news(&before, &agent, because)
                    .into_iter()
                    .for_each(|what| effects.emit(*id, &machine.name, what));
            }
        }
        for (_, sight) in self.sights.iter_mut().filter(|(id, _)| !reports.contains_key(id)) {
            if let Some(agent) = sight.agent.as_mut().filter(|agent| agent.linked) {
                agent.linked = false;
                lost = true;
            }
        }
        lost
    }

    /// Ends the pauses of machines for which something else was decided since their last failure. Where no record has
    /// `changed` since this was asked last, only those can be that have failed since.
    pub fn hurry(&mut self, machines: &BTreeMap<MachineId, Machine>, changed: bool) {
        let just_failed = std::mem::take(&mut self.just_failed);
        let all: Vec<MachineId> = if changed { self.failures.keys().copied().collect() } else { just_failed };
        for id in all {
            let (Some(failures), Some(machine)) = (self.failures.get_mut(&id), machines.get(&id)) else {
                continue;
            };
            if machine.goal != failures.goal {
                *failures = Failures { count: 0, goal: machine.goal };
                if let Some(sight) = self.sights.get_mut(&id) {
                    sight.pause_until = None;
                }
            }
        }
    }

    /// Whether the machine's agent is heard now.
    pub fn is_heard(&self, id: MachineId) -> bool {
        self.sights.get(&id).and_then(|sight| sight.agent).is_some_and(|agent| agent.linked)
    }

    /// When the last effect on the machine ended.
    pub fn settled(&self, id: MachineId) -> Tick {
        self.sights.get(&id).map_or_else(Tick::default, |sight| sight.settled)
    }

    /// Machines whose agents are heard now.
    pub fn heard(&self) -> impl Iterator<Item = MachineId> + '_ {
        self.sights.keys().copied().filter(|id| self.is_heard(*id))
    }

    /// Drops what is known of machines that have ended, once every driver was listed after the last effect on them.
    pub fn drop_ended(
        &mut self,
        machines: &BTreeMap<MachineId, Machine>,
        listed_at: Option<Tick>,
        now: Timestamp,
    ) {
        self.sights.retain(|id, sight| {
            let lives = machines.get(id).is_some_and(|machine| !machine.state.is_terminal());
            let pauses = sight.pause_until.is_some_and(|until| now < until);
            lives || sight.busy || pauses || listed_at.is_none_or(|at| at <= sight.settled)
        });
        let sights = &self.sights;
        self.failures.retain(|id, _| sights.contains_key(id));
    }
}

/// When a pause that begins now ends. A long one may end after half of it, each machine's at its own part, so that those
/// which failed together are not all tried again together.
fn pause_end(id: MachineId, now: Timestamp, pause: Duration) -> Timestamp {
    if pause < PAUSE_STEP {
        return now.after(pause);
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let part = u32::from(hasher.finish().to_le_bytes()[0]);
    let end = now.after(pause * (256 + part) / 512);
    let step_ms = PAUSE_STEP.as_millis() as u64;
    Timestamp(end.0.div_ceil(step_ms).saturating_mul(step_ms))
}

/// What a step that panicked counts as.
pub(super) fn broken() -> Outcome {
    let message = "the server's own code broke down; see its log".to_owned();
    Outcome::Done { lease: None, result: Err(Fault { message, retry: true }) }
}

/// An agent that has not spoken yet.
const SILENT: Agent = Agent {
    linked: false,
    phase: None,
    starts: 0,
    ends: 0,
    last_exit: None,
    healthy: None,
    expired: false,
    log_complete: false,
};

fn understand(report: &AgentReport) -> Agent {
    let AgentReport { linked, status, log_complete } = report;
    let Some(Status { phase, starts, ends, last_exit, healthy, expired, .. }) = status else {
        return Agent { linked: *linked, ..SILENT };
    };
    let phase = match phase {
        agent::Phase::Waiting => Phase::Waiting,
        agent::Phase::Running => Phase::Running,
        agent::Phase::BackingOff => Phase::BackingOff,
        agent::Phase::Stopping => Phase::Stopping,
        agent::Phase::Ended => Phase::Ended,
    };
    Agent {
        linked: *linked,
        phase: Some(phase),
        starts: *starts,
        ends: *ends,
        last_exit: last_exit.map(Into::into),
        healthy: *healthy,
        expired: *expired,
        log_complete: *log_complete,
    }
}

/// What happened between two reports, in the order in which it did. Of several starts or ends in between the last one is
/// told. The end for good is written with the record's change.
fn news(before: &Agent, now: &Agent, unhealthy_because: Option<&str>) -> Vec<What> {
    let mut news = Vec::new();
    let for_good = matches!(now.phase, Some(Phase::Stopping | Phase::Ended)) && now.ends == now.starts;
    let ended = now.ends > before.ends && !for_good;
    let started = |start: u32| What::Started { start };
    // The last end is that of the last start, or of the one before it.
    let of_new_start = now.ends > before.starts;
    if now.starts > before.starts && (of_new_start || !ended) {
        news.push(started(if ended { now.ends } else { now.starts }));
    }
    if ended {
        news.extend(now.last_exit.map(|exit| What::Exited { exit: exit.into() }));
        if now.starts > before.starts.max(now.ends) {
            news.push(started(now.starts));
        }
    }
    if let Some(healthy) = now.healthy.filter(|_| now.healthy != before.healthy) {
        let reason = unhealthy_because.filter(|_| !healthy).map(str::to_owned);
        news.push(What::Health { healthy, reason });
    }
    news
}

#[cfg(test)]
mod tests {
    use calve_core::{Exit, ExitCause};

    use super::*;

    fn said(phase: Phase, starts: u32, ends: u32) -> Agent {
        let exit = Exit { code: Some(ends.cast_signed()), signal: None, cause: ExitCause::Normal };
        Agent { phase: Some(phase), starts, ends, last_exit: (ends > 0).then_some(exit), ..SILENT }
    }

    /// `+n` for the nth start, `-n` for the nth end.
    fn told(reports: &[Agent]) -> String {
        let mut before = SILENT;
        let mut told = Vec::new();
        for now in reports {
            told.extend(news(&before, now, None).into_iter().map(|what| match what {
                What::Started { start } => format!("+{start}"),
                What::Exited { exit } => format!("-{}", exit.code.unwrap()),
                what => panic!("{what:?}"),
            }));
            before = *now;
        }
        told.join(" ")
    }

    #[test]
    fn a_list_from_before_a_creation_or_destruction_has_ended_says_nothing_of_the_machine() {
        let id = MachineId::new(Timestamp(1), 1);
        let driver = calve_core::DriverName::Qemu;
        for (effect, settles) in [
            (Effect::Create { attempt: 1 }, true),
            (Effect::Destroy { driver }, true),
            (Effect::Start, false),
            (Effect::SetLease, false),
        ] {
            for result in [Ok(()), Err(Fault { message: "no".to_owned(), retry: true })] {
                let mut known = Known::default();
                let doing = Doing { id, effect: Some(effect), link: false, goal: Goal::Run, fresh: true };
                known.begin(&doing);
                let listed = known.tick();
                known.end(&doing, Outcome::Done { lease: None, result }, Timestamp(2));
                assert_eq!(known.settled(id) > listed, settles, "{effect:?}");
            }
        }
    }

    #[test]
    fn each_start_and_end_is_told_once_and_in_order() {
        use Phase::{BackingOff, Ended, Running, Stopping, Waiting};
        let every = [
            said(Waiting, 0, 0),
            said(Waiting, 1, 0),
            said(Running, 1, 0),
            said(BackingOff, 1, 1),
            // It is being started.
            said(BackingOff, 2, 1),
            said(Running, 2, 1),
            said(BackingOff, 2, 2),
            said(BackingOff, 3, 2),
            said(Running, 3, 2),
            said(Stopping, 3, 2),
            said(Stopping, 3, 3),
            said(Ended, 3, 3),
        ];
        assert_eq!(told(&every), "+1 -1 +2 -2 +3");
        // Whatever part of them is heard, they are told in order.
        for heard in 0..1_u32 << every.len() {
            let heard: Vec<Agent> = every
                .iter()
                .enumerate()
                .filter(|(n, _)| heard >> n & 1 == 1)
                .map(|(_, said)| *said)
                .collect();
            let told = told(&heard);
            let mut rest = "+1 -1 +2 -2 +3".split(' ');
            assert!(told.is_empty() || told.split(' ').all(|one| rest.any(|next| next == one)), "{told}");
        }
    }
}
