//! The control plane: state, API, the loop, agent links, logs.
//!
//! *Invariant*: every change of a machine goes through a compare-and-set on its record and is written to the event log;
//! only `state/` knows a database, only `reconcile/` calls drivers.

pub mod agents;
pub mod logs;
pub mod ports;
pub mod reconcile;
pub mod state;
