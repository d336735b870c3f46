//! Every serialised type: HTTP `/v1`, server ↔ agent, stored records.
//!
//! *Invariant*: no I/O and no decisions. Each type is a promise: versioned, with one example file under `examples/`, and
//! old examples are still read (`tests/examples.rs`). Durations are milliseconds and sizes bytes, said in the name.

pub mod agent;
pub mod api;
pub mod doctor;
pub mod event;
pub mod frame;
pub mod guard;
pub mod join;
pub mod lend;
pub mod machine;
pub mod record;
pub mod seed;
pub mod start;
pub mod system;
pub mod text;

pub use calve_core::limits;
