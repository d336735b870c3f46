//! Leases: how long a machine may live.
//!
//! ```text
//!  created ──── live ────▶ deadline ──── stopping ────▶ deadline + grace ──── destroy
//! ```

use std::time::Duration;

use crate::Timestamp;

/// How long a machine may live: it is stopped at the deadline and destroyed after the grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The end, or none where the user said `none`.
    pub deadline: Option<Timestamp>,
    /// Time that the program has between the stop and its destruction.
    pub grace: Duration,
}

/// Where a lease stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseStage {
    /// The machine may run on.
    Live,
    /// The deadline has passed: the machine must be stopping.
    Stop,
    /// The grace has passed too: the machine must be destroyed.
    Destroy,
}

impl Lease {
    /// The stage at `now`.
    pub fn stage(&self, now: Timestamp) -> LeaseStage {
        match self.deadline {
            Some(deadline) if now >= deadline.after(self.grace) => LeaseStage::Destroy,
            Some(deadline) if now >= deadline => LeaseStage::Stop,
            _ => LeaseStage::Live,
        }
    }

    /// The lease with its deadline moved back by `by`; a lease without an end keeps none.
    #[must_use]
    pub fn extended(self, by: Duration) -> Self {
        Self { deadline: self.deadline.map(|deadline| deadline.after(by)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_stops_at_its_deadline_and_destroys_after_its_grace() {
        let lease = Lease { deadline: Some(Timestamp(1000)), grace: Duration::from_millis(500) };
        let stages: Vec<_> = [999, 1000, 1499, 1500].map(|t| lease.stage(Timestamp(t))).into();
        assert_eq!(stages, [LeaseStage::Live, LeaseStage::Stop, LeaseStage::Stop, LeaseStage::Destroy]);
        assert_eq!(lease.extended(Duration::from_secs(1)).stage(Timestamp(1999)), LeaseStage::Live);
        assert_eq!(Lease { deadline: None, ..lease }.stage(Timestamp(u64::MAX)), LeaseStage::Live);
    }
}
