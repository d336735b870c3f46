//! The agent: supervises the workload, keeps its log, enforces its lease, and speaks with the server.
//!
//! *Invariant*: it never makes a process itself, init does; and nothing that happens to the server or to the connection
//! changes what becomes of the workload: restarts, health checks and the lease go on by themselves. One thread; whatever
//! could block is a descriptor in the runtime.

pub mod begun;
mod connection;
mod descriptor;
mod health;
pub mod key;
mod last_words;
mod lease;
mod log;
mod outbox;
mod pipe;
mod processes;
pub mod program;
mod spool;
mod stdin;
mod streams;
mod supervisor;
pub mod transport;
mod workload;

pub use log::unix_ms;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use calve_wire::agent::{FromAgent, Remaining, Status};
use calve_wire::frame::Token;
use calve_wire::machine::{HealthCheck, Program, Restart};
use tokio::sync::mpsc;

use crate::enclosure::Enclosure;
use crate::init::packet::{End, NotStarted};
use begun::Begun;
use processes::Processes;
use transport::Transport;

/// Everything that an agent needs to know when it begins.
pub struct Config {
    /// Who knows this is the server.
    pub token: Token,
    /// What remains of the lease.
    pub remaining: Remaining,
    /// Makes the transport, inside of the runtime.
    pub transport: Box<dyn FnOnce() -> io::Result<Transport>>,
    /// The link with init, which was forked before.
    pub init: OwnedFd,
    /// The walls around the machine.
    pub enclosure: Box<dyn Enclosure>,
    /// Says that the server can connect and init is at work; an error ends the agent.
    pub announce: Box<dyn FnOnce() -> io::Result<()>>,
    /// The agent ends with this directory: nobody can find it any more without.
    pub run_dir: Option<PathBuf>,
    /// What was done before the agent was there.
    pub begun: Option<Begun>,
}

/// Runs an agent to the end of its machine: the lease, or the server's word, or init's death. When it returns, nothing of
/// the machine is left alive and [`Enclosure::on_end`] has been called.
pub fn run(config: Config) -> io::Result<()> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, supervise(config))
}

async fn supervise(config: Config) -> io::Result<()> {
    let processes = Processes::new(config.init)?;
    // Init may still be on its way meanwhile.
    let transport = (config.transport)()?;
    processes.ready().await?;
    let (events, told) = mpsc::unbounded_channel();
    let agent = Rc::new(Agent {
        token: RefCell::new(config.token),
        processes: processes.clone(),
        enclosure: config.enclosure,
        log: log::Log::default(),
        outbox: outbox::Outbox::default(),
        streams: RefCell::default(),
        stdin: stdin::Stdin::default(),
        environment: RefCell::default(),
        takes_commands: Cell::new(true),
        status: RefCell::new(Status::waiting()),
        welcomed: Cell::default(),
        events,
    });
    agent.status.borrow_mut().notes = agent.enclosure.notes();
    (config.announce)()?;
    let supervisor = supervisor::Supervisor::new(agent, told, config.remaining, transport, config.run_dir)?;
    supervisor.run(config.begun).await
}

/// What the parts of the agent share.
pub struct Agent {
    /// Of the links to the server; a machine that joins learns it there.
    token: RefCell<Token>,
    processes: Processes,
    enclosure: Box<dyn Enclosure>,
    log: log::Log,
    outbox: outbox::Outbox,
    streams: RefCell<streams::Streams>,
    stdin: stdin::Stdin,
    /// The program's environment, which commands get as well.
    environment: RefCell<BTreeMap<String, String>>,
    /// Whether commands may be started in the machine.
    takes_commands: Cell<bool>,
    status: RefCell<Status>,
    /// Where the server was greeted before the agent was there: the last log entry that it was sent then.
    welcomed: Cell<Option<u64>>,
    events: mpsc::UnboundedSender<Event>,
}

/// What the supervisor is told.
enum Event {
    /// By the server.
    Start { program: Option<Program>, restart: Restart, health: Option<HealthCheck> },
    /// By the server.
    Lease(Remaining),
    /// By the server.
    Stop { grace_ms: u64 },
    /// By the server, for the program.
    Signal(i32),
    /// By the server.
    PowerOff,
    /// The program runs, or why it does not.
    Started(Result<program::Run, NotStarted>),
    /// The program has ended.
    Exited(End),
    /// The health check has decided; why where it fails.
    Health(Result<(), String>),
    /// Anything else that the workload's rules want to know.
    Input(workload::Input),
}

impl Agent {
    /// Tells the supervisor.
    fn tell(&self, event: Event) {
        // It lives as long as the agent.
        let _ = self.events.send(event);
    }

    /// Where the workload stands now.
    fn status(&self) -> Status {
        Status { log_seq: self.log.spool.borrow().last_seq(), ..self.status.borrow().clone() }
    }

    /// Changes the status, and tells the server where that made a difference.
    fn set_status(&self, status: Status) {
        let changed = {
            let mut current = self.status.borrow_mut();
            // The log's end moves all the time and is no news by itself.
            let changed = Status { log_seq: current.log_seq, ..status.clone() } != *current;
            *current = status;
            changed
        };
        if changed {
            self.outbox.send(&FromAgent::Status { status: self.status() });
        }
    }
}

/// Hundreds of commands have three pipes each; the soft limit is made for programs that use select(2).
fn raise_descriptor_limit() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    // With the old limit fewer commands fit at once, which each of them will say.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}
