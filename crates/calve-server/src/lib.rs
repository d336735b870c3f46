//! The control plane: state, API, the loop, agent links, logs.
//!
//! *Invariant*: every change of a machine goes through a compare-and-set on its record and is written to the event log;
//! only `state/` knows a database, only `reconcile/` calls drivers.
//!
//! Where to look:
//! - [`daemon`]: from nothing to a serving process and back, once a user.
//! - [`api`]: HTTP `/v1`; one file a resource.
//! - [`reconcile`]: the loop, and the record changes that requests make.
//! - [`world`]: the loop's eyes and hands: drivers, agents, store, clock.
//! - [`state`]: what survives; [`events`]: what happened.

pub mod dirs;
pub mod events;
pub mod reconcile;
pub mod state;
