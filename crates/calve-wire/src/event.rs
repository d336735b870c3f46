//! Events: one thing that happened, typed, ordered, kept.

use calve_core::{MachineId, MachineName, State};
use serde::{Deserialize, Serialize};

use crate::machine::Exit;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Position in the order of all events of this server; counts from 1.
    pub seq: u64,
    /// When, in milliseconds since the epoch.
    pub time_unix_ms: u64,
    /// Who caused it: `loop`, or the principal of a request, e.g. `uid:1000`.
    pub by: String,
    /// The machine that it is about.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub machine: MachineId,
    /// That machine's name.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: MachineName,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// Somebody asked for the machine.
    Declared,
    /// Its state changed.
    State {
        /// The state from now on.
        #[serde(with = "crate::text")]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        state: State,
        /// Why, where that is not plain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Its program was started; counts from 1, more than 1 is a restart.
    Started {
        /// The number of this start.
        start: u32,
    },
    /// Its program ended.
    Exited {
        /// How.
        exit: Exit,
    },
    /// Its health changed.
    Health {
        /// Whether it is healthy now.
        healthy: bool,
        /// Why it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody told it to end.
    StopRequested,
    /// Nothing of it is left alive.
    Stopped,
    /// Its lease was changed.
    Extended {
        /// The new end.
        deadline_unix_ms: Option<u64>,
    },
    /// A command was run in it.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Files were copied into or out of it.
    Copied {
        /// The path in the machine.
        path: String,
        /// Whether into the machine.
        into: bool,
    },
    /// Its agent has redeemed its join token.
    Joined {
        /// The agent's public key, 64 hexadecimal digits.
        key: String,
    },
    /// Somebody wanted to join as this machine and was refused.
    JoinRefused {
        /// Where the connection came from.
        from: String,
        /// Why.
        why: String,
    },
    /// Its record and logs were removed.
    Removed,
}
