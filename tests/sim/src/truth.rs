//! What users asked of a machine, and what they may rely on.

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

impl Truth {
    /// Whether the machine may be ended now, by what users asked and by its lease.
    pub fn may_end(&self, now: Ms) -> bool {
        self.asked_to_end || self.deadline.is_some_and(|(sure, _)| sure <= now)
    }
}
