//! The loop: observe, plan, execute; from full state, woken by a change or a timer.

pub mod effects;
pub mod records;

pub use effects::{AgentReport, DriverState, EffectError, Effects};
