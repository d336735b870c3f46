//! One machine's link: connects, speaks, connects again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calve_core::MachineId;
use calve_wire::agent::Status;
use calve_wire::frame::Token;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::session::{self, Session, SessionEnd};
use super::{RemainingNow, connect, lock};
use crate::logs::{LogError, Logs};
use crate::reconcile::AgentReport;

/// Pause after the first failed try: the agent's socket is expected within the millisecond.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
/// Longest pause: so late is a machine found that comes back.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Tries a second at most of all machines together: where more machines are away than that, each is tried less often, so
/// that they do not take the processor from those that are there.
const TRIES_MAX_PER_SECOND: u32 = 1000;

/// How the connection comes about.
pub(super) enum Way {
    /// The agent listens on a Unix socket.
    Connect(PathBuf),
    /// The agent dials the server.
    Expect,
}

/// A connection that an agent has dialled, and what was read from it already.
pub(super) struct Dialled {
    pub(super) connection: Box<dyn Connection>,
    pub(super) begun: Vec<u8>,
}

/// A connection of whatever kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<C: AsyncRead + AsyncWrite + Send + Unpin> Connection for C {}

/// What is known of one machine's link.
pub(super) struct Link {
    pub(super) id: MachineId,
    pub(super) token: Token,
    pub(super) remaining: RemainingNow,
    pub(super) logs: Arc<Logs>,
    bell: Arc<Notify>,
    /// How many machines cannot be reached at the moment, of all.
    away: Arc<AtomicU32>,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    session: Option<Arc<Session>>,
    status: Option<Status>,
    /// The last log entry that was kept.
    kept_seq: u64,
    /// Why the log is not being kept.
    log_failure: Option<String>,
    /// Where dialled connections go, for an agent that dials.
    dialled: Option<mpsc::Sender<Dialled>>,
}

impl LinkState {
    /// Whether everything is kept that the program had written when the status was said.
    fn log_complete(&self) -> bool {
        self.status.as_ref().is_none_or(|status| self.kept_seq >= status.log_seq)
    }
}

/// A link with its task, which ends with it.
pub(super) struct LinkHandle {
    pub(super) link: Arc<Link>,
    task: JoinHandle<()>,
}

impl LinkHandle {
    /// Starts the link's task.
    pub(super) fn start(link: Link, way: Way) -> Self {
        let link = Arc::new(link);
        let task = match way {
            Way::Connect(socket) => tokio::spawn(keep_connecting(link.clone(), socket)),
            Way::Expect => {
                let (sender, receiver) = mpsc::channel(1);
                lock(&link.state).dialled = Some(sender);
                tokio::spawn(keep_accepting(link.clone(), receiver))
            }
        };
        Self { link, task }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub(super) fn new(
        id: MachineId,
        token: Token,
        remaining: RemainingNow,
        logs: Arc<Logs>,
        bell: Arc<Notify>,
        away: Arc<AtomicU32>,
    ) -> Self {
        Self { id, token, remaining, logs, bell, away, state: Mutex::default() }
    }

    /// What the loop shall know.
    pub(super) fn report(&self) -> AgentReport {
        let state = lock(&self.state);
        let mut status = state.status.clone();
        if let (Some(status), Some(failure)) = (&mut status, &state.log_failure) {
            status.notes.push(failure.clone());
        }
        AgentReport { linked: state.session.is_some(), status, log_complete: state.log_complete() }
    }

    /// What `part` takes of the last status.
    pub(super) fn said<T>(&self, part: impl FnOnce(Option<&Status>) -> T) -> T {
        part(lock(&self.state).status.as_ref())
    }

    /// The session, while the agent is heard.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        lock(&self.state).session.clone()
    }

    /// Whether the agent dials.
    pub(super) fn is_expected(&self) -> bool {
        lock(&self.state).dialled.is_some()
    }

    /// Hands over a connection that the agent has dialled; it replaces the former one.
    pub(super) async fn dialled(&self, dialled: Dialled) {
        let sender = lock(&self.state).dialled.clone();
        if let Some(sender) = sender {
            // The link may just have ended; then so does the connection.
            let _ = sender.send(dialled).await;
        }
    }

    pub(super) fn session_began(&self, session: Arc<Session>, status: Status) {
        {
            let mut state = lock(&self.state);
            state.session = Some(session);
            state.status = Some(status);
        }
        self.bell.notify_one();
    }

    pub(super) fn session_ended(&self) {
        if lock(&self.state).session.take().is_some() {
            self.bell.notify_one();
        }
    }

    pub(super) fn heard(&self, status: Status) {
        lock(&self.state).status = Some(status);
        self.bell.notify_one();
    }

    /// Notes that the log is kept up to `seq`.
    pub(super) fn log_kept(&self, seq: u64) {
        let completes = {
            let mut state = lock(&self.state);
            let was_complete = state.log_complete();
            state.kept_seq = seq;
            !was_complete && state.log_complete()
        };
        if completes {
            self.bell.notify_one();
        }
    }

    /// Notes why the log is not kept at the moment, or that it is.
    pub(super) fn note_log(&self, failure: Option<&LogError>) {
        let failure = failure.map(|error| match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        });
        let mut state = lock(&self.state);
        if state.log_failure != failure {
            match &failure {
                Some(failure) => tracing::warn!(machine = %self.id, "{failure}"),
                None => tracing::info!(machine = %self.id, "the log is kept again"),
            }
            state.log_failure = failure;
            drop(state);
            self.bell.notify_one();
        }
    }

    fn note_end(&self, end: &SessionEnd) {
        let source = std::error::Error::source(end).map(ToString::to_string).unwrap_or_default();
        if end.is_ordinary() {
            tracing::debug!(machine = %self.id, source, "{end}");
        } else {
            tracing::warn!(machine = %self.id, source, "{end}");
        }
    }
}

/// The task of a link whose agent listens.
async fn keep_connecting(link: Arc<Link>, socket: PathBuf) {
    let mut pause = PAUSE_FIRST;
    let mut away = None;
    loop {
        match connect::connect(&socket).await {
            Ok(connection) => {
                away = None;
                // On the heap: what a conversation needs, a machine that is away need not hold.
                if Box::pin(speak(&link, connection, &[])).await {
                    pause = PAUSE_FIRST;
                }
            }
            Err(error) => tracing::trace!(machine = %link.id, %error, "cannot connect to the agent"),
        }
        let crowd = away.get_or_insert_with(|| Away::new(&link.away)).crowd();
        tokio::time::sleep(spread(pause)).await;
        // Growing by a quarter, a machine that takes long is found at most a quarter late.
        pause = (pause * 5 / 4).min(PAUSE_MAX.max(Duration::from_secs(1) * crowd / TRIES_MAX_PER_SECOND));
    }
}

/// A machine whose agent cannot be reached; counted until it is dropped.
struct Away(Arc<AtomicU32>);

impl Away {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }

    /// How many there are.
    fn crowd(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pause of half to all of `longest`: thousands of machines that are away at once, as after a restart, are not all tried
/// in the same millisecond, in which requests would wait.
fn spread(longest: Duration) -> Duration {
    let [random] = crate::random::bytes();
    longest * (256 + u32::from(random)) / 512
}

/// The task of a link whose agent dials: the newest connection counts.
async fn keep_accepting(link: Arc<Link>, mut dialled: mpsc::Receiver<Dialled>) {
    let mut next = dialled.recv().await;
    while let Some(Dialled { connection, begun }) = next {
        next = tokio::select! {
            newer = dialled.recv() => newer,
            _ = speak(&link, connection, &begun) => dialled.recv().await,
        };
    }
}

/// Speaks over a connection to its end; whether that was an ordinary link.
async fn speak<C>(link: &Arc<Link>, connection: C, begun: &[u8]) -> bool
where
    C: AsyncRead + AsyncWrite,
{
    let (end, linked) = session::run(link, connection, begun).await;
    link.note_end(&end);
    linked && end.is_ordinary()
}
