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
/// Tries a second at most of all machines together, but for [`QUICK_MAX`] and the first of each: where more machines are away
/// than that, each is tried less often, so that they do not take the processor from those that are there.
const TRIES_MAX_PER_SECOND: u32 = 1000;
/// So many machines are tried as often as if they were alone, however many are away: the newest, which are about to come.
const QUICK_MAX: usize = 64;
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
        failed.quick = failed.pause < crowded && waiting.quick < QUICK_MAX;
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
