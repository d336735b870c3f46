//! What users asked of a machine, and what they may rely on.

use calve_wire::system::SwitchOutcome;

use crate::host::Ms;

/// What users asked of a machine, whether or not they had an answer.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    pub asked_to_end: bool,
    /// When it is to be over, as a server has promised.
    pub promised_end: Option<Ms>,
    /// The deadline that the user is sure of, and the latest that may have been written.
    pub deadline: Option<(Ms, Ms)>,
    pub grace: u64,
    /// Whether a server has said that the machine is declared.
    pub acknowledged: bool,
}

/// What has become of a switch on its host, whatever the server knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwitchTruth {
    /// How often it was begun there.
    pub begun: u32,
    pub outcome: Option<SwitchOutcome>,
}

impl SwitchTruth {
    /// Why a server must not say that it has ended so.
    pub fn belies(&self, said: SwitchOutcome) -> Option<&'static str> {
        use SwitchOutcome::{Applied, Failed, Refused, RolledBack};
        match (said, self.outcome) {
            (Applied | RolledBack, outcome) if outcome == Some(said) => None,
            (Applied, _) => Some("its host knows of no such end"),
            (RolledBack, _) => Some("its host has not gone back"),
            (Refused, _) if self.begun > 0 => Some("its host has begun it"),
            (Failed, Some(Applied)) => Some("its host has applied it"),
            (Refused | Failed, _) => None,
        }
    }
}

impl Truth {
    /// Whether the machine may be ended now, by what users asked and by its lease.
    pub fn may_end(&self, now: Ms) -> bool {
        self.asked_to_end || self.deadline.is_some_and(|(sure, _)| sure <= now)
    }
}
