//! Finding the agents that listen: one task for all of them, which ends when none is looked for. A machine that is away is a
//! line in a queue, not a task with a timer of its own: a server may have thousands, and answers requests on the same thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::link::{Link, speak};
use super::{connect, lock};

/// Pause after the first failed try: the agent's socket is expected within the millisecond.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
/// Longest pause: so late is a machine found that comes back.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// About so many tries a second of all machines together, but for the quick ones and the first of each: where more machines
/// are away than that, each is tried less often, so that they do not take the processor from those that are there.
const TRIES_MAX_PER_SECOND: u32 = 1000;
/// So many machines are tried as often as if they were alone, however many are away: the newest, which are about to come.
const QUICK_MAX: usize = 64;
/// Until their pause is this long, some second after the first try; then others may be quick.
const QUICK_PAUSE_MAX: Duration = Duration::from_millis(250);
/// Pauses from [`PAUSE_MAX`] on end at multiples of this: the thread is woken for many tries at once, which together take less
/// than a millisecond.
const PAUSE_STEP: Duration = Duration::from_millis(50);
/// Tries without looking at what else is to be done.
const TRIES_AT_ONCE: usize = 16;

/// Looks for agents. Cloning gives another handle.
#[derive(Clone, Default)]
pub(super) struct Dialer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Rings when a try is due sooner than any before.
    sooner: Notify,
}

#[derive(Default)]
struct Waiting {
    /// What is to be tried when; numbered, as two may be due in the same moment.
    tries: BTreeMap<(Instant, u64), Try>,
    count: u64,
    /// How many of the tries are quick.
    quick: usize,
    /// Whether the task is there.
    running: bool,
}

/// A try at a machine's agent.
struct Try {
    link: Weak<Link>,
    /// The pause that follows where it fails.
    pause: Duration,
    quick: bool,
}

impl Dialer {
    /// Looks for the link's agent from now on, until the link has ended; whenever it is found, the two speak. To be called
    /// within a tokio runtime.
    pub(super) fn find(&self, link: &Arc<Link>) {
        let first = Try { link: Arc::downgrade(link), pause: PAUSE_FIRST, quick: false };
        self.at(&mut lock(&self.0.waiting), Instant::now(), first);
    }

    /// Tries again after a pause of half to all of the try's own: thousands of machines that are away at once, as after a
    /// restart, are not all tried in the same millisecond, in which requests would wait.
    fn again(&self, mut failed: Try) {
        let mut waiting = lock(&self.0.waiting);
        let crowd = u32::try_from(waiting.tries.len()).unwrap_or(u32::MAX);
        let crowded = Duration::from_secs(1) * crowd / TRIES_MAX_PER_SECOND;
        failed.quick = failed.pause < crowded.min(QUICK_PAUSE_MAX) && waiting.quick < QUICK_MAX;
        if failed.quick {
            waiting.quick += 1;
        } else {
            failed.pause = failed.pause.max(crowded);
        }
        let [random] = crate::random::bytes();
        let mut pause = failed.pause * (256 + u32::from(random)) / 512;
        if failed.pause >= PAUSE_MAX {
            pause = PAUSE_STEP
                * u32::try_from(pause.as_nanos().div_ceil(PAUSE_STEP.as_nanos())).unwrap_or(u32::MAX);
        }
        // Growing by a quarter, a machine that takes long is found at most a quarter late.
        failed.pause = (failed.pause * 5 / 4).min(PAUSE_MAX.max(crowded));
        self.at(&mut waiting, Instant::now() + pause, failed);
    }

    fn at(&self, waiting: &mut Waiting, due: Instant, what: Try) {
        waiting.count += 1;
        let soonest = waiting.tries.first_key_value().is_none_or(|((first, _), _)| due < *first);
        waiting.tries.insert((due, waiting.count), what);
        if !std::mem::replace(&mut waiting.running, true) {
            tokio::spawn(self.clone().run(Running(self.clone())));
        } else if soonest {
            self.0.sooner.notify_one();
        }
    }

    async fn run(self, running: Running) {
        loop {
            let next = {
                let mut waiting = lock(&self.0.waiting);
                match waiting.tries.first_key_value() {
                    Some(((due, _), _)) => *due,
                    None => {
                        waiting.running = false;
                        return std::mem::forget(running);
                    }
                }
            };
            if next > Instant::now() {
                tokio::select! {
                    () = sleep_until(next) => {}
                    () = self.0.sooner.notified() => {}
                }
                continue;
            }
            for _ in 0..TRIES_AT_ONCE {
                let Some(due) = self.due() else { break };
                self.attempt(due);
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next try that is due.
    fn due(&self) -> Option<Try> {
        let mut waiting = lock(&self.0.waiting);
        let first = waiting.tries.first_entry().filter(|first| first.key().0 <= Instant::now())?;
        let due = first.remove();
        waiting.quick -= usize::from(due.quick);
        Some(due)
    }

    fn attempt(&self, due: Try) {
        let Some(link) = due.link.upgrade() else { return };
        match connect::connect(&link.socket) {
            Ok(connection) => {
                let dialer = self.clone();
                link.clone().keep(async move {
                    let ordinary = speak(&link, connection, &[]).await;
                    let pause = if ordinary { PAUSE_FIRST } else { due.pause };
                    link.rest();
                    dialer.again(Try { pause, ..due });
                });
            }
            Err(error) => {
                tracing::trace!(machine = %link.id, %error, "cannot connect to the agent");
                self.again(due);
            }
        }
    }
}

/// The task; where it is dropped with its runtime, another may take its place.
struct Running(Dialer);

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0.0.waiting).running = false;
    }
}

#[cfg(test)]
mod tests {
    use calve_core::{MachineId, Timestamp};
    use calve_wire::agent::Remaining;

    use super::*;
    use crate::agents::Agents;
    use crate::logs::{LogOptions, Logs};

    const AWAY: u64 = 2000;
    const SECONDS: u64 = 5;

    fn agents(dir: &std::path::Path) -> Arc<Agents> {
        Agents::new(Arc::new(Logs::open(dir.join("logs"), LogOptions::default())), Arc::default())
    }

    fn link(agents: &Agents, n: u64, socket: std::path::PathBuf) {
        let id = MachineId::new(Timestamp(1), n.into());
        let remaining = Arc::new(|| Remaining { until_deadline_ms: None, grace_ms: 0 });
        agents.link(id, socket, "0".repeat(32), remaining).unwrap();
    }

    fn tries(agents: &Agents) -> u64 {
        lock(&agents.dialer.0.waiting).count
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_that_are_away_are_tried_now_and_then_and_a_new_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let agents = agents(dir.path());
        (0..AWAY).for_each(|n| link(&agents, n, dir.path().join("none")));
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        let first = tries(&agents);
        let quick = QUICK_MAX as u64 * 100;
        assert!(first < AWAY + quick + SECONDS * 2 * u64::from(TRIES_MAX_PER_SECOND), "{first} tries");
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        let then = tries(&agents) - first;
        assert!(then >= SECONDS * AWAY / 4, "each is tried, {then} times in all");
        assert!(then < SECONDS * 2 * u64::from(TRIES_MAX_PER_SECOND), "{then} tries");

        let begun = Instant::now();
        let socket = dir.path().join("new");
        link(&agents, AWAY, socket.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        listener.accept().await.unwrap();
        assert!(begun.elapsed() < PAUSE_MAX, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_looked_for_whose_link_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let agents = agents(dir.path());
        link(&agents, 1, dir.path().join("none"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        agents.unlink(MachineId::new(Timestamp(1), 1));
        tokio::time::sleep(PAUSE_MAX * 2).await;
        let waiting = lock(&agents.dialer.0.waiting);
        assert!(waiting.tries.is_empty() && !waiting.running && waiting.quick == 0);
    }
}
