//! The simulator, in three layers. Nothing in it is random but the seed, so that a seed that fails fails again.
//!
//! ```text
//!  Layer::Loop   users ─▶ records ─┐                    ┌─▶ host: drivers with machines, agents that enforce leases
//!                                  ├─ state ◀─▶ loop ◀──┼─▶ provider, behind the server's own driver for providers
//!                crashes at every operation of both ────┘   faults: see `faults`
//!  Layer::Plans  the same plan, memory and host, with effects as events: hundreds of times as fast
//!  Layer::Closures  caches that lie ─▶ the real pull ─▶ a store in which only what is genuine may count
//! ```
//! *Invariant*: each world has one thread, and tokio's paused clock or none, but for pulls, whose threads are their own; no hash maps, no other randomness.

mod aim;
mod check;
mod closure;
mod closures;
mod digest;
mod effects;
mod faults;
mod host;
mod hosts;
mod link;
mod many;
mod plans;
mod provider;
mod rng;
mod shrink;
mod simulation;
mod store;
mod systems;
mod truth;
mod users;
mod world;

pub use aim::{Aim, How, When, Which};
pub use closures::PULLS;
pub use faults::{Chances, Fault, Without};
pub use many::{Enough, Layer, Outcome, Sum, run_many, run_one};
pub use shrink::{Shrunk, TRIES, shrink};
pub use simulation::{Options, Plant, Report, STEPS, run};
