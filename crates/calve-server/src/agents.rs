//! The server's end of the agent protocol: one link a machine, kept until it is told to end.
//!
//! ```text
//!             socket answers          preamble + Welcome          bytes end, broken peer
//!  connecting ──────────────▶ greeting ────────────────▶ linked ─────────────────────────┐
//!      ▲                         └───────────────────────────────────────────────────────┤
//!      └──────────────── pause: none after a link, then growing to a second ◀────────────┘
//! ```
//! One task looks for all agents ([`dial`]), and one a machine speaks with it ([`link`]); one connection is a session ([`session`]); what other tasks want of it goes
//! through its outbox ([`outbox`]) and its table of streams ([`streams`]). Agents on other hosts dial in instead
//! ([`listen`]). Nothing waits for a slow reader of one stream: each has a window, and who has none left is not sent more.

mod connect;
mod dial;
mod identity;
mod last_words;
mod link;
mod listen;
mod outbox;
mod session;
mod streams;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use calve_core::MachineId;
use calve_wire::agent::{Remaining, Status, Target, ToAgent};
use tokio::sync::Notify;

use crate::logs::Logs;
use crate::reconcile::AgentReport;
use dial::Dialer;
use link::{Link, LinkHandle, Way};

pub use identity::{Identity, IdentityError};
pub use listen::{HANDSHAKES_MAX, Listener};
pub use streams::{AgentStream, Stdin, StreamEvent, StreamReceiver, StreamSender};

/// Most streams that are open at once to one machine: with [`calve_wire::frame::STREAM_WINDOW_BYTES`] each this bounds
/// what the server holds for a machine whose clients do not read.
pub const STREAMS_MAX: usize = 256;

/// The public half of an agent's ed25519 key.
pub type AgentKey = [u8; 32];

/// Tells what remains of a machine's lease at this moment.
pub type RemainingNow = Arc<dyn Fn() -> Remaining + Send + Sync>;

/// Why an agent could not be told something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No link was asked for, or it was ended.
    #[error("the machine is not linked to this server")]
    Unknown,
    /// The agent is not heard now; it may be again soon.
    #[error("the machine's agent does not answer at the moment; try again")]
    NotLinked,
    /// The connection ended in the middle.
    #[error("the link to the machine's agent broke; try again")]
    Broken,
    /// The agent takes nothing more.
    #[error("the machine's agent takes no further messages at the moment; try again")]
    Busy,
    /// Too many streams are open.
    #[error("{STREAMS_MAX} streams to the machine are open already; close some")]
    TooManyStreams,
    /// Somebody else writes to the program's standard input.
    #[error("somebody else is attached to the program's standard input")]
    StdinTaken,
    /// The other end wants no more on this stream, or it has ended.
    #[error("the other end of the stream is closed")]
    StreamClosed,
    /// The token is none.
    #[error("the machine's record holds no usable agent token")]
    BadToken,
}

/// The links to all machines' agents.
pub struct Agents {
    logs: Arc<Logs>,
    bell: Arc<Bell>,
    links: Mutex<BTreeMap<MachineId, LinkHandle>>,
    /// Of agents that ended unheard, until their machines are forgotten.
    last_words: Mutex<BTreeMap<MachineId, Arc<Status>>>,
    dialer: Dialer,
}

impl Agents {
    /// No links yet. What agents say goes to `logs`; `bell` rings whenever a report has changed.
    pub fn new(logs: Arc<Logs>, bell: Arc<Notify>) -> Arc<Self> {
        let bell = Arc::new(Bell { rung: bell, count: AtomicU64::new(0) });
        Arc::new(Self {
            logs,
            bell,
            links: Mutex::default(),
            last_words: Mutex::default(),
            dialer: Dialer::default(),
        })
    }

    /// Keeps a link to the agent that listens on `socket`, until [`Self::unlink`]. Repeated: nothing changes. To be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::BadToken`] where `token` is not 32 hexadecimal digits.
    pub fn link(
        &self,
        id: MachineId,
        socket: PathBuf,
        token: String,
        remaining: RemainingNow,
    ) -> Result<(), LinkError> {
        self.keep(id, &token, remaining, socket, Way::Connect(&self.dialer))
    }

    /// Expects the machine's agent to dial in ([`Self::listen`]), until [`Self::unlink`]. Repeated: nothing changes.
    ///
    /// # Errors
    /// [`LinkError::BadToken`] where `token` is not 32 hexadecimal digits.
    pub fn expect(&self, id: MachineId, token: String, remaining: RemainingNow) -> Result<(), LinkError> {
        self.keep(id, &token, remaining, PathBuf::new(), Way::Expect)
    }

    /// The same for a machine that may have joined: from then on only the connections of its key count.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_joined(
        &self,
        id: MachineId,
        token: String,
        key: Option<AgentKey>,
        remaining: RemainingNow,
    ) -> Result<(), LinkError> {
        self.expect(id, token, remaining)?;
        if let Some(key) = key {
            self.bind(id, key);
        }
        Ok(())
    }

    /// The machine is this key's from now on: no connection without it is its agent's. Where no link is kept, nothing changes.
    pub fn bind(&self, id: MachineId, key: AgentKey) {
        if let Some(handle) = lock(&self.links).get(&id) {
            handle.link.bind(key);
        }
    }

    fn keep(
        &self,
        id: MachineId,
        token: &str,
        remaining: RemainingNow,
        socket: PathBuf,
        way: Way<'_>,
    ) -> Result<(), LinkError> {
        let token = token.parse().map_err(|_| LinkError::BadToken)?;
        lock(&self.links).entry(id).or_insert_with(|| {
            self.bell.count();
            let link = Link::new(id, token, remaining, self.logs.clone(), self.bell.clone(), socket);
            LinkHandle::start(link, way)
        });
        Ok(())
    }

    /// Ends the link; its streams fail. Absence is success.
    pub fn unlink(&self, id: MachineId) {
        let link = lock(&self.links).remove(&id);
        drop(link);
        self.bell.count();
    }

    /// What is known of each linked machine's agent.
    pub fn reports(&self) -> BTreeMap<MachineId, AgentReport> {
        let mut reports: BTreeMap<_, _> =
            lock(&self.links).iter().map(|(id, handle)| (*id, handle.link.report())).collect();
        reports.extend(lock(&self.last_words).iter().map(|(id, status)| (*id, unlinked(status))));
        reports
    }

    /// Counts changes of the [`Self::reports`]: while this stays the same, so do they.
    pub fn changes(&self) -> u64 {
        self.bell.count.load(Ordering::SeqCst)
    }

    /// What is known of one machine's agent.
    pub fn report(&self, id: MachineId) -> Option<AgentReport> {
        if let Some(status) = lock(&self.last_words).get(&id) {
            return Some(unlinked(status));
        }
        lock(&self.links).get(&id).map(|handle| handle.link.report())
    }

    /// What `part` takes of the agent's last status; without copying all of it.
    pub fn said<T>(&self, id: MachineId, part: impl FnOnce(Option<&Status>) -> T) -> T {
        let last = lock(&self.last_words).get(&id).cloned();
        match lock(&self.links).get(&id) {
            _ if last.is_some() => part(last.as_deref()),
            Some(handle) => handle.link.said(part),
            None => part(None),
        }
    }

    /// Tells the agent something. `Ok` says that it is under way, not that it arrived: what matters is told again.
    pub fn send(&self, id: MachineId, message: ToAgent) -> Result<(), LinkError> {
        self.session(id)?.outbox.send(&message)
    }

    /// Ends the connection with an agent, so that it has to be heard anew: that an old connection still stands says nothing
    /// of whether another one could be made.
    pub fn hear_anew(&self, id: MachineId) -> Result<(), LinkError> {
        self.session(id)?.left.notify_one();
        Ok(())
    }

    /// Counts connections in which the agent was heard; none while it is not.
    pub fn heard(&self, id: MachineId) -> Option<u64> {
        lock(&self.links).get(&id)?.link.heard_now()
    }

    /// Opens a stream. Whether the agent could open it comes as the stream's first event at the latest.
    pub fn open(&self, id: MachineId, target: Target) -> Result<AgentStream, LinkError> {
        streams::open(&self.session(id)?, target)
    }

    /// The writer of the program's standard input; one at a time.
    pub fn stdin(&self, id: MachineId) -> Result<Stdin, LinkError> {
        streams::stdin(&self.session(id)?)
    }

    fn session(&self, id: MachineId) -> Result<Arc<session::Session>, LinkError> {
        lock(&self.links).get(&id).ok_or(LinkError::Unknown)?.link.session().ok_or(LinkError::NotLinked)
    }

    /// The link whose token this is and whose key, where it has one, in a time that does not depend on which it is.
    fn expected(&self, preamble: &[u8], key: Option<&AgentKey>) -> Option<Arc<Link>> {
        let links = lock(&self.links);
        let mut found = None;
        for handle in links.values().filter(|handle| handle.link.is_expected()) {
            if same(&handle.link.token.preamble(), preamble) && handle.link.key().as_ref() == key {
                found = Some(handle.link.clone());
            }
        }
        found
    }
}

/// The report of an agent that is gone: what it left is kept already.
fn unlinked(status: &Status) -> AgentReport {
    AgentReport { linked: false, status: Some(status.clone()), log_complete: true }
}

/// Tells that a report has changed.
struct Bell {
    rung: Arc<Notify>,
    count: AtomicU64,
}

impl Bell {
    /// To be called after the change.
    fn ring(&self) {
        self.count();
        self.rung.notify_one();
    }

    fn count(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Compares in a time that does not depend on where the two differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |acc, (a, b)| acc | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half-changed: every change under these locks is one insertion or removal.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
