//! Decisions, pure: ids, machines, leases, and the plan that follows from what was observed.
//!
//! *Invariant*: no tokio, no serde, no clock, no randomness, no I/O: time and seeds are arguments. So a simulator drives
//! exactly the code that runs in production.

pub mod ids;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod placement;
pub mod plan;
pub mod time;

pub use ids::{DriverName, MachineId, MachineName, NodeName};
pub use lease::{Lease, LeaseStage};
pub use machine::{Exit, ExitCause, Goal, Kind, Machine, Runs, State, StopReason};
pub use time::Timestamp;
