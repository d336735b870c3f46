//! The server as a process: one a data directory, found at its socket, gone when nobody needs it.
//!
//! ```text
//!  lock ─▶ state, logs, events, store ─▶ world, loop ─▶ listen ─▶ serve … ─▶ stop listening ─▶ let requests end
//! ```
//! Ending it, in whichever way, leaves machines running: the next server takes them over.

mod connections;
mod http;
mod idle;
mod listen;
mod lock;
mod log_file;
mod token;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calve_node::Driver;
use calve_store::{Store, StoreError};
use calve_wire::api::{AgentsDoor, Problem, ProblemKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agents::{Identity, IdentityError, Listener};
use crate::api::{self, Context};
use crate::cache::Embedded;
use crate::dirs::{Dirs, DirsError};
use crate::events::EventLog;
use crate::joins::Joins;
use crate::logs::{LogOptions, Logs};
use crate::memory;
use crate::reconcile;
use crate::reconcile::records::View;
use crate::state::embedded::OpenError;
use crate::state::{EmbeddedState, State};
use crate::world::roots::GcRoots;
use crate::world::{Parts, World, now};

pub use connections::{Connection, Connections};
use listen::Listeners;
use lock::{Lock, Taken};

/// How long an idle server stays: long enough for a session of commands, short enough to be forgotten.
pub const IDLE_EXIT_DEFAULT: Duration = Duration::from_secs(300);
/// How long an ending server waits for requests under way.
const REQUESTS_END_MAX: Duration = Duration::from_secs(2);

/// How long a starting server waits for one that holds the lock without listening: it ends, or is about to listen.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(4);
/// Pause between two tries at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a server is started with.
pub struct Config {
    /// Where things lie.
    pub dirs: Dirs,
    /// How machines can be made, from the directories and the store.
    pub drivers: MakeDrivers,
    /// Also listen there, for whoever has the token.
    pub listen: Option<SocketAddr>,
    /// File of the token for `listen`; `token` in the data directory where none is given. Made where it does not exist.
    pub token_file: Option<PathBuf>,
    /// Also listen there, over TLS, for agents of machines that dial in.
    pub agents: Option<SocketAddr>,
    /// Ends the server once it has been idle for so long: no connection and no machine that has not ended; none: never.
    pub idle_exit: Option<Duration>,
    /// Version of the program, for `calve server status`.
    pub version: String,
}

/// Gives every driver that the server shall have.
pub type MakeDrivers = Arc<dyn Fn(&Dirs, &Arc<Store>) -> Vec<Arc<dyn Driver>> + Send + Sync>;

/// That a server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Where it listens: the socket's path, and the address with the port that the kernel chose for 0.
    pub listens: Vec<String>,
    /// The token file, where it listens on an address.
    pub token_file: Option<PathBuf>,
    /// The token, where it was made just now; to be shown this once.
    pub made_token: Option<String>,
    /// Where agents dial, where they may.
    pub agents: Option<AgentsDoor>,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another one uses the data directory.
    #[error("another calve server{} uses {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), data.display())]
    AlreadyRunning {
        /// Its process id, where it has said it.
        pid: Option<u32>,
        /// The data directory.
        data: PathBuf,
    },
    /// No directories.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The state cannot be used.
    #[error("the state in {} cannot be used", data.display())]
    State {
        /// The data directory.
        data: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The private store cannot be used.
    #[error("the private store cannot be used")]
    Store(#[source] StoreError),
    /// No key towards agents.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file or socket cannot be used.
    #[error("{what} cannot be used")]
    Io {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ServeError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// As clients see errors: its kind sets the exit code.
    pub fn problem(&self) -> Problem {
        let problem = |kind| Problem::new(kind, crate::chain(self));
        match self {
            Self::AlreadyRunning { .. } => problem(ProblemKind::Conflict)
                .hint("`calve server status` shows it, `calve server stop` ends it; machines go on"),
            Self::State { source: OpenError::Newer { .. }, .. } => problem(ProblemKind::Conflict)
                .hint("use the newer calve that wrote it, or another data directory (CALVE_HOME)"),
            Self::State { source: OpenError::Full, .. } => {
                problem(ProblemKind::DiskFull).hint("free some space there, then try again")
            }
            Self::Dirs(_) => problem(ProblemKind::BadRequest).hint("set CALVE_HOME to a directory of yours"),
            Self::State { .. } | Self::Store(_) | Self::Identity(_) | Self::Io { .. } => {
                problem(ProblemKind::Internal)
            }
        }
    }
}

/// Sends what this process traces to the server's log file from now on; for the program that runs [`serve`].
pub fn init_log(dirs: &Dirs) -> Result<(), ServeError> {
    dirs.create()?;
    log_file::init(&dirs.server_log()).map_err(ServeError::io("the server's log"))
}

/// Writes what this process traces to a file from now on, as a server does to its log.
pub fn init_log_at(path: &Path) -> std::io::Result<()> {
    log_file::init(path)
}

/// Serves until SIGTERM, SIGINT, `POST /v1/server/stop` or idleness. `ready` is called once clients are served.
pub async fn serve(config: Config, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
    let shutdown = CancellationToken::new();
    end_on_signals(&shutdown)?;
    raise_descriptor_limit();
    memory::give_back();
    config.dirs.create()?;
    let _lock = lock(&config.dirs).await?;
    let state = open_state(&config.dirs)?;
    let listeners = Listeners::open(&config).await?;
    let mut told = listeners.ready();
    let mut context = open(&config, state.clone(), told.listens.clone(), shutdown.clone())?;
    let (view, world) = (context.view.clone(), context.world.clone());
    let door = open_door(&config, &context).await?;
    told.agents = door.as_ref().map(|(_, door)| door.clone());
    context.agents = told.agents.clone();
    reap_roots(&state, &view, &world).await;
    // Reading and parsing thousands of records has left as much again behind.
    memory::trim();
    let looping =
        tokio::spawn(reconcile::run(state.clone(), view.clone(), world, shutdown.clone().cancelled_owned()));
    let trimming = tokio::spawn(memory::keep_trimmed());
    let connections = Connections::default();
    let router = api::router(context);
    tracing::info!(listens = ?told.listens, version = config.version, "serving");
    ready(&told);

    let idle = idle::Idle { state, view, connections: connections.watch(), exit_after: config.idle_exit };
    listeners.serve(router, connections.clone(), idle, &shutdown).await;
    shutdown.cancel();
    trimming.abort();
    let mut open = connections.watch();
    let ended = open.wait_for(|count| *count == 0);
    if tokio::time::timeout(REQUESTS_END_MAX, ended).await.is_err() {
        tracing::info!("some requests were cut off");
    }
    if let Err(error) = looping.await {
        tracing::error!(%error, "the loop failed");
    }
    tracing::info!("ended; machines go on");
    Ok(())
}

/// Takes the lock; waits for one that ends, which has removed its socket already.
async fn lock(dirs: &Dirs) -> Result<Lock, ServeError> {
    let waited = Instant::now();
    loop {
        match Lock::take(&dirs.lock()).map_err(ServeError::io("the lock of the data directory"))? {
            Taken::Ours(lock) => return Ok(lock),
            Taken::Theirs(pid) => {
                if listen::somebody_listens(&dirs.socket()).await || waited.elapsed() > LOCK_WAIT_MAX {
                    return Err(ServeError::AlreadyRunning { pid, data: dirs.data.clone() });
                }
            }
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

fn open_state(dirs: &Dirs) -> Result<Arc<dyn State>, ServeError> {
    let state = EmbeddedState::open(&dirs.data)
        .map_err(|source| ServeError::State { data: dirs.data.clone(), source })?;
    Ok(Arc::new(state))
}

fn open(
    config: &Config,
    state: Arc<dyn State>,
    listens: Vec<String>,
    shutdown: CancellationToken,
) -> Result<Context, ServeError> {
    let dirs = config.dirs.clone();
    let events = EventLog::open(&dirs.events()).map_err(ServeError::io("the event log"))?;
    let logs = Arc::new(Logs::open(dirs.logs(), LogOptions::default()));
    let store = Arc::new(Store::open(&dirs.store()).map_err(ServeError::Store)?);
    let drivers = (config.drivers)(&dirs, &store);
    let parts = Parts {
        drivers,
        run_dir: dirs.run.clone(),
        store,
        roots: GcRoots::new(dirs.roots()),
        cache: Arc::new(Embedded::new(dirs.cache())),
        logs: logs.clone(),
        events: events.clone(),
    };
    let world = World::new(parts);
    Ok(Context {
        state,
        view: View::default(),
        world,
        logs,
        events,
        dirs,
        version: config.version.clone(),
        started: now(),
        listens,
        agents: None,
        shutdown,
    })
}

/// Opens the door for agents, where one is wanted.
async fn open_door(config: &Config, context: &Context) -> Result<Option<(Listener, AgentsDoor)>, ServeError> {
    let Some(addr) = config.agents else { return Ok(None) };
    let identity = Identity::load_or_make(&config.dirs.data)?;
    let joins = Joins::new(context.state.clone(), context.view.clone(), context.events.clone());
    let listener = context.world.agents().listen(addr, &identity, Arc::new(joins)).await;
    let listener = listener.map_err(ServeError::io(format!("the address {addr} for agents")))?;
    let door = AgentsDoor { listens: listener.local_addr().to_string(), fingerprint: identity.fingerprint() };
    Ok(Some((listener, door)))
}

/// Lets go of store paths that a former server held for machines which have ended without it.
async fn reap_roots(state: &Arc<dyn State>, view: &View, world: &World) {
    match view.refresh(&**state).await {
        // An unreadable record may be a living machine's.
        Ok(()) if view.unreadable().is_empty() => {
            world.reap_roots(view.living_ids()).await;
        }
        Ok(()) => {}
        Err(error) => tracing::warn!(error = crate::chain(&error), "leftover roots are not known"),
    }
}

fn end_on_signals(shutdown: &CancellationToken) -> Result<(), ServeError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(ServeError::io("the handling of signals"))?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            if shutdown.run_until_cancelled(signals.recv()).await.is_some() {
                shutdown.cancel();
            }
        });
    }
    Ok(())
}

/// Each machine takes some descriptors, and the usual soft limit of 1,024 is soon used up. Programs do not inherit this
/// where it would hurt them: a driver's supervisor sets its own limits.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}
