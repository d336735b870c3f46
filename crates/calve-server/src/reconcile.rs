//! The loop: observe, plan, execute; from full state, woken by a change or a timer.
//!
//! ```text
//!   View (records) ─┐                       ┌─▶ step: one machine's write, link and effect, as a task of its own
//!   lists, drivers ─┼─▶ World ─▶ plan ─▶ ───┤
//!   agents ─────────┘     ▲                 └─▶ looks: lists of machines, drivers
//!                         └──── what steps and looks found; bells of state and effects; a timer
//! ```
//! A round never waits for an effect, and of one machine at most one step is under way.

pub mod effects;
mod known;
pub mod records;
mod rounds;
mod step;

use std::future::Future;
use std::sync::Arc;

use crate::state::State;
/// What the loop remembers between rounds, for the simulator of plans alone, which has rounds of its own.
#[doc(hidden)]
pub use known::{Doing, Known};
#[doc(hidden)]
pub use step::{Effect, Outcome};

pub use effects::{AgentReport, DriverState, EffectError, Effects};
use records::View;

/// Runs the loop until `shutdown`; dropped or shut down, it leaves whatever it was doing to the next loop.
///
/// It first takes over what there is: links every machine that has not ended, and lists the drivers.
pub async fn run(
    state: Arc<dyn State>,
    view: View,
    effects: Arc<dyn Effects>,
    shutdown: impl Future<Output = ()>,
) {
    let mut rounds = rounds::Rounds::new(state, view, effects);
    tokio::select! {
        biased;
        () = shutdown => {}
        () = rounds.run() => {}
    }
}
