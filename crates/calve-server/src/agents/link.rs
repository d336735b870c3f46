//! One machine's link: what is known of its agent, and the task in which the two speak.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use calve_core::MachineId;
use calve_wire::agent::Status;
use calve_wire::frame::Token;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::dial::Dialer;
use super::session::{self, Session, SessionEnd};
use super::{AgentKey, Bell, RemainingNow, lock};
use crate::logs::{LogError, Logs};
use crate::reconcile::AgentReport;

/// How the connection comes about.
pub(super) enum Way<'a> {
    /// The agent listens on the link's socket, and is looked for by this.
    Connect(&'a Dialer),
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
    /// Where the agent listens; empty where it dials.
    pub(super) socket: Box<Path>,
    bell: Arc<Bell>,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    session: Option<Arc<Session>>,
    /// Counts connections in which the agent was heard.
    heard: u64,
    /// What the agent said last; by itself, as machines that are away have none.
    status: Option<Box<Status>>,
    /// The last log entry that was kept.
    kept_seq: u64,
    /// Why the log is not being kept.
    log_failure: Option<String>,
    /// Where dialled connections go, for an agent that dials.
    dialled: Option<mpsc::Sender<Dialled>>,
    /// The link's task, while there is a connection or one is waited for.
    task: Option<AbortHandle>,
    /// Whether the link has ended: it has no task any more.
    ended: bool,
    /// Whose connections count alone, once the machine has joined.
    key: Option<Box<AgentKey>>,
}

impl LinkState {
    /// Whether everything is kept that the program had written when the status was said.
    fn log_complete(&self) -> bool {
        self.status.as_ref().is_none_or(|status| self.kept_seq >= status.log_seq)
    }
}

/// A link that ends, with its task, when this is dropped.
pub(super) struct LinkHandle {
    pub(super) link: Arc<Link>,
}

impl LinkHandle {
    /// Starts the link.
    pub(super) fn start(link: Link, way: Way<'_>) -> Self {
        let link = Arc::new(link);
        match way {
            Way::Connect(dialer) => dialer.find(&link),
            Way::Expect => {
                let (sender, receiver) = mpsc::channel(1);
                lock(&link.state).dialled = Some(sender);
                link.keep(keep_accepting(link.clone(), receiver));
            }
        }
        Self { link }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        let mut state = lock(&self.link.state);
        state.ended = true;
        let task = state.task.take();
        // What the task drops may want the lock.
        drop(state);
        if let Some(task) = task {
            task.abort();
        }
    }
}

impl Link {
    pub(super) fn new(
        id: MachineId,
        token: Token,
        remaining: RemainingNow,
        logs: Arc<Logs>,
        bell: Arc<Bell>,
        socket: PathBuf,
    ) -> Self {
        Self { id, token, remaining, logs, socket: socket.into(), bell, state: Mutex::default() }
    }

    /// Has `task` done as the link's own, in place of the former one, until it ends or the link does.
    pub(super) fn keep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.task = Some(tokio::spawn(task).abort_handle());
        }
    }

    /// Lets go of a task that has nothing more to do, and with it of the memory that it took.
    pub(super) fn rest(&self) {
        lock(&self.state).task = None;
    }

    /// What the loop shall know.
    pub(super) fn report(&self) -> AgentReport {
        let state = lock(&self.state);
        let mut status = state.status.as_deref().cloned();
        if let (Some(status), Some(failure)) = (&mut status, &state.log_failure) {
            status.notes.push(failure.clone());
        }
        AgentReport { linked: state.session.is_some(), status, log_complete: state.log_complete() }
    }

    /// What `part` takes of the last status.
    pub(super) fn said<T>(&self, part: impl FnOnce(Option<&Status>) -> T) -> T {
        part(lock(&self.state).status.as_deref())
    }

    /// The session, while the agent is heard.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        lock(&self.state).session.clone()
    }

    /// Counts connections in which the agent was heard; none while there is none.
    pub(super) fn heard_now(&self) -> Option<u64> {
        let state = lock(&self.state);
        state.session.as_ref().map(|_| state.heard)
    }

    /// The machine is this key's.
    pub(super) fn bind(&self, key: AgentKey) {
        lock(&self.state).key = Some(Box::new(key));
    }

    /// Whose the machine is, where it has joined.
    pub(super) fn key(&self) -> Option<AgentKey> {
        lock(&self.state).key.as_deref().copied()
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
            state.heard += 1;
            state.status = Some(Box::new(status));
        }
        self.bell.ring();
    }

    pub(super) fn session_ended(&self) {
        if lock(&self.state).session.take().is_some() {
            self.bell.ring();
        }
    }

    pub(super) fn heard(&self, status: Status) {
        lock(&self.state).status = Some(Box::new(status));
        self.bell.ring();
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
            self.bell.ring();
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
            self.bell.ring();
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
pub(super) async fn speak<C>(link: &Arc<Link>, connection: C, begun: &[u8]) -> bool
where
    C: AsyncRead + AsyncWrite,
{
    let (end, linked) = session::run(link, connection, begun).await;
    link.note_end(&end);
    linked && end.is_ordinary()
}
