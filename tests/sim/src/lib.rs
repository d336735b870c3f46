//! The simulator: the real loop, records and plan over a seeded world with a fake clock. Nothing in it is random but the
//! seed, so that a seed that fails fails again.
//!
//! ```text
//!  users ─▶ records ─┐                    ┌─▶ host: drivers with machines, agents that enforce leases by themselves
//!                    ├─ state ◀─▶ loop ◀──┤
//!  crashes at every operation of both ────┘   faults: effects that fail before or after, are slow, links that break
//! ```
//! *Invariant*: one thread, tokio's paused clock, no hash maps, no other randomness.

mod check;
mod effects;
mod faults;
mod host;
mod rng;
mod simulation;
mod users;
mod world;

pub use simulation::{Options, Plant, Report, run};
