//! The machine as decisions see it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::ids::IdError;
use crate::{DriverName, Lease, MachineId, MachineName, NodeName, Timestamp};

/// Gives an enum of plain words `as_str`, `Display` and `FromStr`.
macro_rules! words {
    ($name:ident, $noun:literal, $rule:literal, { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that users, records and the API use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(IdError { noun: $noun, text: s.to_owned(), rule: $rule }),
                }
            }
        }
    };
}

/// What the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A whole system (a NixOS toplevel), or the bare base guest.
    System,
    /// A program that is kept running.
    Service,
    /// A program that runs once.
    Job,
}
words!(Kind, "kind", "one of system, service, job", { System => "system", Service => "service", Job => "job" });

/// What is handed to a machine; decides which drivers can make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runs {
    /// A program out of a closure.
    Program,
    /// A system, which boots its own kernel.
    System,
    /// Nothing but the agent.
    Base,
    /// Whatever ran on it before: somebody else made the machine, it was adopted, and no agent of ours is in it.
    Adopted,
    /// The same for a host that is reached over SSH: whoever speaks with it starts an agent there.
    Host,
}

impl Runs {
    /// Whether somebody else made the machine: nothing of it is ours to stop.
    pub fn is_adopted(self) -> bool {
        match self {
            Self::Program | Self::System | Self::Base => false,
            Self::Adopted | Self::Host => true,
        }
    }

    /// Whether there is an agent to speak with.
    pub fn has_agent(self) -> bool {
        self != Self::Adopted
    }
}

/// The life of a machine. Owner: the loop ([`crate::plan`]) alone writes it.
///
/// ```text
///  declared ─▶ placed ─▶ creating ─▶ booting ─▶ seeding ─▶ running ─▶ draining ─▶ gone
///     │          │          │           │          │          │           ├─────▶ expired  (its lease ended)
///     └──────────┴──────────┴───────────┴──────────┴──────────┴───────────┴─────▶ failed   (it could not be made or kept)
/// ```
/// The three on the right are terminal: reached only once nothing of the machine is left alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Written down; no place chosen yet.
    Declared,
    /// A node and driver are chosen.
    Placed,
    /// The driver was asked to make it; whether it did is not known yet.
    Creating,
    /// It exists; its agent has not spoken yet.
    Booting,
    /// Its agent speaks; the workload is being handed over.
    Seeding,
    /// The workload runs.
    Running,
    /// Told to stop, or its program has ended; about to be destroyed.
    Draining,
    /// Destroyed, and seen to be.
    Gone,
    /// It could not be made or kept; destroyed.
    Failed,
    /// Its lease ended; destroyed.
    Expired,
}
words!(State, "machine state", "a state of a machine", {
    Declared => "declared", Placed => "placed", Creating => "creating", Booting => "booting", Seeding => "seeding",
    Running => "running", Draining => "draining", Gone => "gone", Failed => "failed", Expired => "expired",
});

impl State {
    /// Whether nothing more will happen to the machine.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Gone | Self::Failed | Self::Expired)
    }
}

/// Why a machine was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// Its program ended and is not to be restarted.
    Exited,
    /// Somebody said stop or rm, or interrupted `run`.
    Requested,
    /// Its lease ended.
    Expired,
    /// It could not be made or kept.
    Failed,
}
words!(StopReason, "stop reason", "one of exited, requested, expired, failed", {
    Exited => "exited", Requested => "requested", Expired => "expired", Failed => "failed",
});

/// What should become of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Run until something below happens.
    Run,
    /// End: SIGTERM, `grace`, SIGKILL, destroy.
    Stop {
        /// When it was decided.
        since: Timestamp,
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
        /// Why.
        reason: StopReason,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, where it ended by itself.
    pub code: Option<i32>,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// What was behind it.
    pub cause: ExitCause,
}

/// What was behind the end of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitCause {
    /// It ended by itself or by a signal that somebody sent.
    Normal,
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// A limit other than memory ended it.
    Limit,
    /// It could not be started at all.
    NotStarted,
    /// The machine went away under it.
    MachineLost,
}
words!(ExitCause, "exit cause", "normal, out-of-memory, limit, not-started, machine-lost", {
    Normal => "normal", OutOfMemory => "out-of-memory", Limit => "limit", NotStarted => "not-started",
    MachineLost => "machine-lost",
});

impl Exit {
    /// The code with which a shell would end: the program's own, or 128 + signal; 125 where it never ran.
    pub fn shell_code(&self) -> i32 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 125,
        }
    }
}

/// What decisions need to know of a machine's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// Its name.
    pub name: MachineName,
    /// What it does.
    pub kind: Kind,
    /// What is handed to it.
    pub runs: Runs,
    /// Where it stands.
    pub state: State,
    /// What should become of it.
    pub goal: Goal,
    /// Its lease.
    pub lease: Lease,
    /// The driver that the user asked for, if any.
    pub wanted_driver: Option<DriverName>,
    /// Where it was placed.
    pub placement: Option<(NodeName, DriverName)>,
    /// Counts creations; every effect carries it, so that a late answer to an old one is told apart.
    pub attempt: u32,
    /// How its program ended, once it did for good.
    pub exit: Option<Exit>,
    /// When it was declared.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub state_since: Timestamp,
    /// Whether its record is to be removed once it has ended.
    pub remove: bool,
}
