//! The protocol between the server and a machine's agent: control messages in frames ([`crate::frame`]).
//!
//! The server connects to (or is dialled by) the agent; one connection at a time, a new one replaces the old. After the
//! preambles the server says [`ToAgent::Hello`], the agent answers [`FromAgent::Welcome`] and sends its log from the
//! asked position on. Everything may be repeated: a second `Start` of a started workload changes nothing.

use serde::{Deserialize, Serialize};

use crate::machine::{Exit, ExitCause, HealthCheck, Limits, Network, Program, Restart};

/// The protocol's version; the agent refuses a server of another major version in its `Welcome`.
pub const AGENT_PROTOCOL_VERSION: u32 = 1;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A lease as told to an agent: relative, because clocks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// Time until the deadline; none where the lease has no end.
    pub until_deadline_ms: Option<u64>,
    /// Time from the deadline to the destruction.
    pub grace_ms: u64,
}

/// What the server tells an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToAgent {
    /// First message of a connection.
    Hello {
        /// [`AGENT_PROTOCOL_VERSION`] of the server.
        version: u32,
        /// The last log entry that the server has kept; the agent resumes behind it.
        log_seq: u64,
        /// The lease.
        remaining: Remaining,
    },
    /// Start the workload; repeated ones change nothing.
    Start {
        /// The program; none where the machine itself is the workload.
        program: Option<Program>,
        /// When it is started again.
        restart: Restart,
        /// How its health is told.
        health: Option<HealthCheck>,
    },
    /// The lease has changed.
    Lease {
        /// What remains.
        remaining: Remaining,
    },
    /// End the program: SIGTERM to its group, `grace_ms`, SIGKILL to everything. Repeated ones may shorten the grace.
    Stop {
        /// Time between the two.
        grace_ms: u64,
    },
    /// Send a signal to the program's group.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// The server has kept the log up to here; the agent may forget it.
    LogKept {
        /// The last kept entry.
        seq: u64,
    },
    /// Open a stream. Numbers are the server's choice, above 0, unused on this connection.
    Open {
        /// The stream's number.
        stream: u32,
        /// What it is to.
        target: Target,
    },
    /// The receiver of a stream's data has room for this many further bytes.
    Window {
        /// The stream.
        stream: u32,
        /// Further bytes.
        bytes: u32,
    },
    /// Send a signal to a stream's command.
    StreamSignal {
        /// The stream.
        stream: u32,
        /// Signal number.
        signal: i32,
    },
    /// A stream's terminal has this size now.
    Resize {
        /// The stream.
        stream: u32,
        /// The size.
        size: WindowSize,
    },
    /// The server no longer wants the stream; its command is killed.
    Reset {
        /// The stream.
        stream: u32,
    },
    /// End everything and go: a guest powers off, a sandbox's agent exits.
    PowerOff,
}

/// What a stream is to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum Target {
    /// A command in the machine.
    Command {
        /// The program and its arguments; a bare name is looked up in `PATH`.
        argv: Vec<String>,
        /// Added to the machine's environment.
        env: std::collections::BTreeMap<String, String>,
        /// Working directory.
        cwd: Option<String>,
        /// Whether standard input will come; otherwise it is empty.
        stdin: bool,
        /// The terminal's size, where one is wanted.
        tty: Option<WindowSize>,
    },
    /// A TCP port on the machine's loopback: stdin goes there, stdout comes from there.
    Tcp {
        /// Port number.
        port: u16,
    },
    /// A tar archive of a path in the machine comes on stdout.
    Read {
        /// Absolute path.
        path: String,
    },
    /// A tar archive on stdin is unpacked into a directory in the machine.
    Write {
        /// Absolute path of an existing directory.
        path: String,
    },
    /// Store paths into the store of a machine that has none of its host ([`crate::seed`]).
    Seed {
        /// Absolute path of the store; made where it is missing.
        path: String,
    },
}

/// What an agent tells the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromAgent {
    /// First message of a connection.
    Welcome {
        /// [`AGENT_PROTOCOL_VERSION`] of the agent.
        version: u32,
        /// Version of the agent's program.
        agent: String,
        /// Where the workload stands.
        status: Status,
    },
    /// Where the workload stands, after each change.
    Status {
        /// The status.
        status: Status,
    },
    /// A stream is open.
    Opened {
        /// The stream.
        stream: u32,
    },
    /// A stream could not be opened or has broken; its last message.
    StreamFailed {
        /// The stream.
        stream: u32,
        /// Why, for people.
        message: String,
        /// For a command, or an archive's path: the exit code with which a shell says the same, 127 for what does not
        /// exist and 126 for what does and cannot be used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    },
    /// A stream has ended; its last message. A command's exit comes behind all of its output.
    StreamEnded {
        /// The stream.
        stream: u32,
        /// How the command ended, for a command.
        exit: Option<Exit>,
    },
    /// The receiver of a stream's data has room for this many further bytes.
    Window {
        /// The stream.
        stream: u32,
        /// Further bytes.
        bytes: u32,
    },
}

/// Where a workload stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The phase.
    pub phase: Phase,
    /// How often the program was started.
    pub starts: u32,
    /// How often it ended; the last end is `last_exit`.
    #[serde(default)]
    pub ends: u32,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// What lies behind that beyond its cause, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_because: Option<String>,
    /// Whether the health check passes; none before the first probe or without a check.
    pub healthy: Option<bool>,
    /// Why the health check failed last, where it did since it passed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_because: Option<String>,
    /// Whether the agent began to end it because its lease ended, before anybody else did.
    #[serde(default)]
    pub expired: bool,
    /// Which limits could not be enforced and why, what went wrong: for people.
    pub notes: Vec<String>,
    /// The last log entry that was made; all of the output is there once the phase is `ended`.
    pub log_seq: u64,
}

impl Status {
    /// That of an agent which was told nothing yet.
    pub fn waiting() -> Self {
        Self {
            phase: Phase::Waiting,
            starts: 0,
            ends: 0,
            last_exit: None,
            ended_because: None,
            healthy: None,
            unhealthy_because: None,
            expired: false,
            notes: Vec::new(),
            log_seq: 0,
        }
    }

    /// What is to be said of the last end: why the program was not started, where that is how it ended, or what lies behind it.
    pub fn why_ended(&self) -> Option<String> {
        let unstarted = self.last_exit.is_some_and(|exit| exit.cause == ExitCause::NotStarted);
        self.notes.last().filter(|_| unstarted).or(self.ended_because.as_ref()).cloned()
    }
}

/// File of the run directory in which an agent leaves what no server has heard, where it ends the machine by itself: frames
/// of log entries, then a control frame with a [`FromAgent::Status`]. It is there in whole or not at all.
pub const LAST_WORDS_FILE: &str = "last-words";
/// Most bytes of [`LAST_WORDS_FILE`]: an agent holds less of a log before programs wait for the server.
pub const LAST_WORDS_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The phases of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No `Start` yet.
    Waiting,
    /// The program runs, or the system is up.
    Running,
    /// The program ended and will be started again after a pause.
    BackingOff,
    /// Told to end; something is still alive.
    Stopping,
    /// Ended for good; nothing of it is alive.
    Ended,
}

/// What a driver hands to the agent beside a sandboxed process: `sandbox.json` in the run directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// [`AGENT_PROTOCOL_VERSION`] of the writer.
    pub version: u32,
    /// The machine's id, for cgroup names.
    pub machine_id: String,
    /// The machine's name, its host name.
    pub hostname: String,
    /// Second half of the preamble.
    pub token: String,
    /// The lease at `written_unix_ms`.
    pub remaining: Remaining,
    /// When this was written.
    pub written_unix_ms: u64,
    /// The closure: where each store path lies on the host, and its base name under `/nix/store`.
    pub store_paths: Vec<StoreMount>,
    /// What it may use.
    pub limits: Limits,
    /// How it sees the network.
    pub network: Network,
}

/// A store path and where it lies on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMount {
    /// Path on the host.
    pub source: String,
    /// `<hash>-<name>` under `/nix/store`.
    pub base_name: String,
}

/// Where a sandbox has its cgroups: `cgroups.json` in the run directory, written before they are made, so that whoever finds
/// the directory can remove everything without asking the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxCgroups {
    /// Their directories, as absolute paths on the host.
    pub dirs: Vec<String>,
}

/// The first process of a sandbox: `init.json` in the run directory, written before it is told to go on. When it has ended,
/// nothing of the sandbox is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInit {
    /// Process id on the host.
    pub pid: i32,
    /// Start time in clock ticks since boot (`proc_pid_stat(5)`, field 22), which tells it from a later one with its number.
    pub start_ticks: u64,
}

/// Why a sandbox could not be made; the agent says it in place of its ready byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SandboxFailure {
    /// Whether trying again helps.
    pub kind: SandboxFailureKind,
    /// One sentence for people.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
}

/// Kinds of [`SandboxFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxFailureKind {
    /// This host or order does not allow it; trying again does not help.
    Unusable,
    /// No space or other resource left.
    NoSpace,
    /// Anything else.
    Failed,
}

/// The agent's first byte to its driver: the sandbox is made and its socket listens. Anything else is the JSON of a
/// [`SandboxFailure`].
pub const READY_BYTE: u8 = b'R';
/// The driver's answer: the machine is written down, go on without me. The end of the stream in its place means that the
/// driver died before that, and the agent must undo everything.
pub const KEEP_BYTE: u8 = b'K';
