//! What is known of a switch on the disk of its host.

use calve_wire::system::{HostOrder, HostSwitch};
use serde::{Deserialize, Serialize};

use calve_agent::course::Course;

/// The record of the switch under way, or of the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub order: HostOrder,
    /// The system before.
    pub former: String,
    /// The link to which the profile's link led before, e.g. `system-41-link`.
    pub former_link: String,
    /// The profile's generation of the new system; none where the action makes none.
    pub generation: Option<u64>,
    /// How far it has come.
    pub course: Course,
    /// By when it has to be confirmed.
    pub deadline: Deadline,
    /// Whether the health check passed at its last run.
    pub healthy: bool,
    /// When it was begun.
    pub begun_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// The kernel's setting for a restart after a panic, where it was changed.
    pub panic_was: Option<String>,
}

/// A moment by a clock that nobody sets, which is another with each boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot.
    pub boot_id: String,
    /// Milliseconds since its start.
    pub boottime_ms: u64,
}

impl Record {
    /// As others see it.
    pub fn to_switch(&self) -> HostSwitch {
        let notes = &self.course.notes;
        HostSwitch {
            id: self.order.id.clone(),
            toplevel: self.order.toplevel.clone(),
            former: self.former.clone(),
            action: self.order.action,
            generation: self.generation,
            by: self.order.by.clone(),
            begun_unix_ms: self.begun_unix_ms,
            ended_unix_ms: self.ended_unix_ms,
            stage: self.course.stage(),
            healthy: self.healthy,
            outcome: self.course.outcome(),
            message: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }
}
