//! What a plan says.

use std::fmt;
use std::time::Duration;

use crate::{DriverName, Exit, Goal, Machine, MachineId, NodeName, State, StopReason, Timestamp};

/// What to do, what is waited for, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What to do. Actions of one machine stand together, in order; when one fails the rest of them are dropped. Actions
    /// of different machines are independent.
    pub actions: Vec<Action>,
    /// What is waited for, and why.
    pub waits: Vec<Wait>,
    /// When to look again even if nothing happens.
    pub next_wake: Option<Timestamp>,
}

/// One thing to do; nothing is left to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Change the record, all at once, if it is still as it was.
    Write {
        /// The machine.
        id: MachineId,
        /// The changes, in order.
        changes: Vec<Change>,
    },
    /// Keep a link to the agent from now on.
    Link {
        /// The machine.
        id: MachineId,
    },
    /// Make the machine.
    Create {
        /// The machine.
        id: MachineId,
        /// Which creation of it.
        attempt: u32,
    },
    /// Hand the workload to the agent.
    Start {
        /// The machine.
        id: MachineId,
    },
    /// Tell the machine what remains of its lease.
    SetLease {
        /// The machine.
        id: MachineId,
    },
    /// Tell the agent to end the program.
    Stop {
        /// The machine.
        id: MachineId,
        /// Time between SIGTERM and SIGKILL, from now.
        grace: Duration,
    },
    /// End and remove everything of the machine on its node.
    Destroy {
        /// The machine.
        id: MachineId,
        /// The driver that has it.
        driver: DriverName,
    },
    /// Remove the log, the record and the name.
    Forget {
        /// The machine.
        id: MachineId,
    },
}

/// One change of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A place was chosen.
    Place {
        /// The node.
        node: NodeName,
        /// The driver.
        driver: DriverName,
    },
    /// The driver is about to be asked to make it.
    Creating {
        /// Counts creations.
        attempt: u32,
    },
    /// Its state is another.
    State(State),
    /// Its program ended for good.
    Exit(Exit),
    /// It is to end.
    End {
        /// As of when.
        since: Timestamp,
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
        /// Why.
        reason: StopReason,
    },
    /// What people should know of it.
    Message(String),
}

/// Something that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// The machine.
    pub id: MachineId,
    /// For what.
    pub on: On,
    /// Until when at most, where something happens then by itself.
    pub until: Option<Timestamp>,
}

/// What a machine can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    /// Something that is being done to it.
    Effect,
    /// That the drivers are looked at.
    Drivers,
    /// The pause after a failure.
    Retry,
    /// Its agent's first words.
    Boot,
    /// That its agent is heard again.
    Agent,
    /// That the agent has the workload running.
    Start,
    /// That the program ends.
    ProgramEnd,
    /// The rest of its log.
    Log,
    /// A list of its driver.
    List,
}

impl Action {
    /// The machine that it is about.
    pub fn id(&self) -> MachineId {
        match *self {
            Self::Write { id, .. }
            | Self::Link { id }
            | Self::Create { id, .. }
            | Self::Start { id }
            | Self::SetLease { id }
            | Self::Stop { id, .. }
            | Self::Destroy { id, .. }
            | Self::Forget { id } => id,
        }
    }
}

impl Change {
    /// Makes the change in what decisions know of the record.
    pub fn apply(&self, machine: &mut Machine, now: Timestamp) {
        match self {
            Self::Place { node, driver } => {
                machine.placement = Some((node.clone(), *driver));
                (machine.state, machine.state_since) = (State::Placed, now);
            }
            Self::Creating { attempt } => {
                machine.attempt = *attempt;
                (machine.state, machine.state_since) = (State::Creating, now);
            }
            Self::State(state) => (machine.state, machine.state_since) = (*state, now),
            Self::Exit(exit) => machine.exit = Some(*exit),
            Self::End { since, grace, reason } => {
                machine.goal = Goal::Stop { since: *since, grace: *grace, reason: *reason };
            }
            Self::Message(_) => {}
        }
    }
}

impl On {
    /// What is waited for, in words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Effect => "what is being done to it",
            Self::Drivers => "the drivers to be looked at",
            Self::Retry => "the pause after a failure",
            Self::Boot => "its agent's first words",
            Self::Agent => "its agent to be heard again",
            Self::Start => "its agent to start the program",
            Self::ProgramEnd => "its program to end",
            Self::Log => "the rest of its log",
            Self::List => "its driver's list",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { changes, .. } => {
                f.write_str("write")?;
                changes
                    .iter()
                    .enumerate()
                    .try_for_each(|(i, change)| write!(f, "{}{change}", if i == 0 { " " } else { ", " }))
            }
            Self::Link { .. } => f.write_str("link"),
            Self::Create { attempt, .. } => write!(f, "create attempt {attempt}"),
            Self::Start { .. } => f.write_str("start"),
            Self::SetLease { .. } => f.write_str("set lease"),
            Self::Stop { grace, .. } => write!(f, "stop with {} ms", grace.as_millis()),
            Self::Destroy { driver, .. } => write!(f, "destroy in {driver}"),
            Self::Forget { .. } => f.write_str("forget"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place { node, driver } => write!(f, "placed on {node} with {driver}"),
            Self::Creating { attempt } => write!(f, "creating {attempt}"),
            Self::State(state) => write!(f, "{state}"),
            Self::Exit(exit) => write!(f, "exit {} {}", exit.shell_code(), exit.cause),
            Self::End { since, grace, reason } => {
                write!(f, "end {reason} since {} with {} ms", since.0, grace.as_millis())
            }
            Self::Message(message) => write!(f, "{message:?}"),
        }
    }
}
