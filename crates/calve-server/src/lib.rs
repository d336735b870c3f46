//! The control plane: state, API, the loop, agent links, logs.
//!
//! *Invariant*: every change of a machine goes through a compare-and-set on its record and is written to the event log;
//! only `state/` knows a database, only `reconcile/` calls drivers.
//!
//! Where to look:
//! - [`daemon`]: from nothing to a serving process and back, once a user.
//! - [`api`]: HTTP `/v1`; one file a resource.
//! - [`cache`]: the binary cache: Nix's protocol and our own.
//! - [`reconcile`]: the loop, and the record changes that requests make.
//! - [`world`]: the loop's eyes and hands: drivers, agents, store, clock.
//! - [`agents`]: the links to machines; [`joins`]: how machines elsewhere become known; [`logs`]: what they said; [`ports`]: published on this host.
//! - [`systems`]: hosts whose system is switched.
//! - [`state`]: what survives; [`events`]: what happened.

pub mod agents;
pub mod api;
pub mod cache;
pub mod cloud;
pub mod daemon;
pub mod dirs;
pub mod events;
mod http1;
pub mod joins;
pub mod logs;
pub mod memory;
pub mod ports;
pub mod random;
pub mod reconcile;
pub mod state;
pub mod systems;
pub mod world;

use calve_store::chain;
