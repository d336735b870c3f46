//! Stored records: one JSON document a machine, so that every change of a machine is one compare-and-set.

use std::time::Duration;

use calve_core::plan::Change;
use calve_core::{
    DriverName, Goal, Lease, Machine, MachineId, MachineName, NodeName, State, StopReason, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::machine::{Exit, MachineSpec};

/// The version that this program writes. Older ones are read; a newer one is refused ([`MachineRecord::from_json`]).
pub const RECORD_VERSION: u32 = 1;

/// A machine as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// Its id.
    #[serde(with = "crate::text")]
    pub id: MachineId,
    /// Its name.
    #[serde(with = "crate::text")]
    pub name: MachineName,
    /// What it was asked to be.
    pub spec: MachineSpec,
    /// Where it stands.
    #[serde(with = "crate::text")]
    pub state: State,
    /// Set once it was told to end.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// End of its lease in milliseconds since the epoch; none where the user said so.
    pub deadline_unix_ms: Option<u64>,
    /// Time between its stop and its destruction.
    pub grace_ms: u64,
    /// Its node, once placed.
    #[serde(default, with = "crate::text::option")]
    pub node: Option<NodeName>,
    /// Its driver, once placed.
    #[serde(default, with = "crate::text::option")]
    pub driver: Option<DriverName>,
    /// Counts creations.
    pub attempt: u32,
    /// Shared with its agent alone: the agent speaks to nobody who does not know it. 32 hexadecimal digits.
    pub agent_token: String,
    /// Which key has redeemed the machine's join token, where it has one ([`crate::join`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Whether it ends when its client is gone.
    #[serde(default)]
    pub held: bool,
    /// How its program ended for good.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Why it failed or what is special about it, for people.
    #[serde(default)]
    pub message: Option<String>,
    /// When it was declared.
    pub created_unix_ms: u64,
    /// When its state last changed.
    pub state_since_unix_ms: u64,
    /// Whether it is to be removed, with its log and name, once it has ended.
    #[serde(default)]
    pub remove: bool,
}

/// That a machine's join token was redeemed: the machine is this key's, and nobody else's until the next attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The attempt whose machine it was.
    pub attempt: u32,
    /// The key, 64 hexadecimal digits.
    pub key: String,
    /// When.
    pub unix_ms: u64,
}

/// Who holds a name, as it is stored under the name: written before the machine's record, removed after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// The machine.
    #[serde(with = "crate::text")]
    pub id: MachineId,
    /// When it was claimed.
    pub claimed_unix_ms: u64,
}

/// Stands where a machine's record would, after somebody else took its name because no record had come: holds off a
/// creator that was only slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoidRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// When the name was taken.
    pub void_unix_ms: u64,
}

/// That a machine was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When.
    pub since_unix_ms: u64,
    /// Time between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// Why.
    #[serde(with = "crate::text")]
    pub reason: StopReason,
}

/// Why a stored record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A newer calve wrote it.
    #[error("the record has version {found}, this program reads up to {RECORD_VERSION}")]
    Newer {
        /// The version found.
        found: u32,
    },
    /// It is not what any version wrote.
    #[error("the record does not parse")]
    Malformed(#[from] serde_json::Error),
}

impl MachineRecord {
    /// Reads a record of this or an older version.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let VersionOnly { version } = serde_json::from_slice(bytes)?;
        if version > RECORD_VERSION {
            return Err(RecordError::Newer { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The record as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record holds nothing that JSON cannot say")
    }

    /// The key of the machine's agent, where it has joined in this attempt.
    pub fn agent_key(&self) -> Option<&str> {
        self.joined.as_ref().filter(|joined| joined.attempt == self.attempt).map(|joined| joined.key.as_str())
    }

    /// What decisions need of it.
    pub fn to_machine(&self) -> Machine {
        Machine {
            id: self.id,
            name: self.name.clone(),
            kind: self.spec.kind,
            runs: self.spec.runs(),
            state: self.state,
            goal: self.stop.map_or(Goal::Run, |stop| Goal::Stop {
                since: Timestamp(stop.since_unix_ms),
                grace: Duration::from_millis(stop.grace_ms),
                reason: stop.reason,
            }),
            lease: Lease {
                deadline: self.deadline_unix_ms.map(Timestamp),
                grace: Duration::from_millis(self.grace_ms),
            },
            wanted_driver: self.spec.driver,
            placement: self.node.clone().zip(self.driver),
            attempt: self.attempt,
            exit: self.exit.map(Into::into),
            created_at: Timestamp(self.created_unix_ms),
            state_since: Timestamp(self.state_since_unix_ms),
            remove: self.remove,
        }
    }

    /// Makes a change that was planned.
    pub fn apply(&mut self, change: &Change, now: Timestamp) {
        let mut state = |state| (self.state, self.state_since_unix_ms) = (state, now.0);
        match change {
            Change::Place { node, driver } => {
                state(State::Placed);
                (self.node, self.driver) = (Some(node.clone()), Some(*driver));
            }
            Change::Creating { attempt } => {
                state(State::Creating);
                self.attempt = *attempt;
            }
            Change::State(new) => {
                state(*new);
                if *new == State::Booting {
                    // What was said of failed attempts no longer matters.
                    self.message = None;
                }
            }
            Change::Exit(exit) => self.exit = Some((*exit).into()),
            Change::End { since, grace, reason } => {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                self.stop = Some(Stop { since_unix_ms: since.0, grace_ms, reason: *reason });
            }
            Change::Message(message) => self.message = Some(message.clone()),
        }
    }
}
