//! The HTTP API, `/v1`.

use calve_core::{DriverName, MachineId, MachineName, NodeName, State, StopReason};
use serde::{Deserialize, Serialize};

use crate::machine::{Exit, MachineSpec, PortMapping};

/// Path under which the server's binary cache lies: Nix's protocol and calve's own.
pub const CACHE_PREFIX: &str = "/cache";

/// `POST /v1/machines`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateMachine {
    /// Its id, never used before; the server makes one where none is given. Who chooses it may ask again after an answer
    /// was lost: the same machine is shown, and no second one made.
    #[serde(default, with = "crate::text::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub id: Option<MachineId>,
    /// Its name; `run-<n>` with the smallest free number where none is given.
    #[serde(default, with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<MachineName>,
    /// What it shall be.
    pub spec: MachineSpec,
    /// Length of its lease; null for none.
    pub ttl_ms: Option<u64>,
    /// Time between its stop and its destruction; the server's default where none is given.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// Whether it ends when no client is attached with `?hold=true` any more.
    #[serde(default)]
    pub hold: bool,
}

/// Adopts a machine that somebody else made: it gets a lease, and is destroyed when that ends. Nothing is put into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AdoptMachine {
    /// As of [`CreateMachine`].
    #[serde(default, with = "crate::text::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub id: Option<MachineId>,
    /// Its name here; `run-<n>` with the smallest free number where none is given.
    #[serde(default, with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<MachineName>,
    /// The provider that has it; `ssh` for a host.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub provider: DriverName,
    /// The provider's id of it; the host, such as `ssh://root@pi`.
    pub machine: String,
    /// The host's key, or its fingerprint, where the user's `known_hosts` does not know it; with `ssh` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Length of its lease; null for none.
    pub ttl_ms: Option<u64>,
    /// Time between its stop and its destruction, in which whoever has the provider's credentials leaves it alone; the server's
    /// default where none is given.
    #[serde(default)]
    pub grace_ms: Option<u64>,
}

/// A machine as `ps` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineSummary {
    /// Its id.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: MachineId,
    /// Its name.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: MachineName,
    /// What it does: `system`, `service` or `job`.
    pub kind: String,
    /// Where it stands.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: State,
    /// Whether its health check passes; null where it has none or none has run.
    pub ready: Option<bool>,
    /// What its state does not tell: `backing-off` while its program is down and will be started again after a pause.
    #[serde(default)]
    pub condition: Option<Condition>,
    /// How often its program was started again, as far as the server has heard.
    #[serde(default)]
    pub restarts: u32,
    /// Its driver, once placed.
    #[serde(with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub driver: Option<DriverName>,
    /// Its node, once placed.
    #[serde(with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub node: Option<NodeName>,
    /// What it runs: a program's path, a toplevel, or `base`.
    pub runs: String,
    /// When it was declared.
    pub created_unix_ms: u64,
    /// End of its lease; null where it has none.
    pub deadline_unix_ms: Option<u64>,
    /// How its program ended.
    pub exit: Option<Exit>,
    /// Its published ports, with the ports that the node chose.
    pub ports: Vec<PortMapping>,
}

/// What a running machine's state does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The program has ended and will be started again after a pause.
    BackingOff,
}

/// A machine in full: `GET /v1/machines/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineView {
    /// As `ps` lists it.
    #[serde(flatten)]
    pub summary: MachineSummary,
    /// What it was asked to be.
    pub spec: MachineSpec,
    /// Why it was told to end.
    #[serde(with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub stop_reason: Option<StopReason>,
    /// Counts creations.
    pub attempt: u32,
    /// How often its program was started.
    pub starts: u32,
    /// Whether the server hears its agent.
    pub linked: bool,
    /// Why it failed, what it waits for, which limits are not enforced: for people.
    pub messages: Vec<String>,
    /// When its state last changed.
    pub state_since_unix_ms: u64,
    /// How far a closure is that is on its way to it; none where none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bringing: Option<Bringing>,
}

/// How far a closure is on its way to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bringing {
    /// Paths that the machine lacked.
    pub paths: u64,
    /// Those of them that were sent.
    pub paths_done: u64,
    /// Bytes of the archives of all of them.
    pub bytes: u64,
    /// Those of them that were sent, or told by where they stand in a path that the machine has.
    pub bytes_done: u64,
    /// Bytes that this took on the line.
    pub sent_bytes: u64,
}

/// `POST /v1/machines/{name}/stop` and the body of `DELETE /v1/machines/{name}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StopMachine {
    /// Time between SIGTERM and SIGKILL; the machine's own where none is given.
    #[serde(default)]
    pub grace_ms: Option<u64>,
}

/// `POST /v1/machines/{name}/extend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// Added to the deadline.
    pub by_ms: u64,
}

/// `POST /v1/prune`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// How long a store path of the server's own must not have been used to be removed; a day where none is given, and at
    /// least an hour.
    #[serde(default)]
    pub unused_ms: Option<u64>,
}

/// `POST /v1/prune`: what was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pruned {
    /// The names of the ended machines whose records and logs were removed.
    pub machines: Vec<String>,
    /// Store paths of the server's own that no living machine needs, removed.
    #[serde(default)]
    pub store_paths: Vec<String>,
    /// Bytes of logs, images and store paths that were freed.
    pub freed_bytes: u64,
}

/// `GET /v1/server`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerInfo {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub started_unix_ms: u64,
    /// Machines that are not gone.
    pub machines: u64,
    /// Directory of its state, logs and store.
    pub data_dir: String,
    /// Where it listens.
    pub listens: Vec<String>,
    /// Where agents of machines dial in; null where they cannot.
    #[serde(default)]
    pub agents: Option<AgentsDoor>,
}

/// Where agents of machines that are not on the server's host dial in, over TCP and TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentsDoor {
    /// The address.
    pub listens: String,
    /// SHA-256 of the server's certificate in 64 hexadecimal digits: agents speak to nobody else.
    pub fingerprint: String,
}

/// The first message of the `exec` WebSocket, client to server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments; a bare name is looked up in the machine's `PATH`.
    pub argv: Vec<String>,
    /// Added to the machine's environment.
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Whether the client will send standard input.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's size, where one is wanted.
    #[serde(default)]
    pub tty: Option<crate::agent::WindowSize>,
}

/// Control messages of the `attach` and `exec` WebSockets (text frames). Data goes in binary frames whose first byte is
/// the channel ([`crate::frame::Channel`]); an empty one closes the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum StreamControl {
    /// Client: send this signal to the program.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Client: the terminal has this size now.
    Resize {
        /// The size.
        size: crate::agent::WindowSize,
    },
    /// Server: the program has ended, all of its output was sent; the last message.
    Exit {
        /// How; none where it never ran.
        exit: Option<Exit>,
        /// The machine's state, for `attach`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
        /// What went wrong, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Server: it could not be done; the last message.
    Error {
        /// What and what to do.
        problem: Problem,
    },
}

/// An error, as `application/problem+json` (RFC 9457) with a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// The kind; it sets the HTTP status and the client's exit code.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// One sentence.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of errors that a client can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The request makes no sense. 400
    BadRequest,
    /// The token is missing or wrong. 401
    Unauthorized,
    /// No such machine or path. 404
    NotFound,
    /// The name is taken, or the machine is not in a state for it. 409
    Conflict,
    /// No driver or node can do it. 422
    Unusable,
    /// A limit was reached. 429
    LimitReached,
    /// No space left. 507
    DiskFull,
    /// The server is at fault. 500
    Internal,
}

impl ProblemKind {
    /// The HTTP status of this kind.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unusable => 422,
            Self::LimitReached => 429,
            Self::Internal => 500,
            Self::DiskFull => 507,
        }
    }
}

impl Problem {
    /// A problem of `kind` in one sentence.
    pub fn new(kind: ProblemKind, title: impl Into<String>) -> Self {
        Self { kind, title: title.into(), status: kind.status(), hint: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.title)
    }
}

impl std::error::Error for Problem {}
