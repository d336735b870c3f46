//! The agent as the first process of a guest: makes the machine a place where programs run, then starts init and the
//! agent proper; with a system, it hands the place over to the system's own init.
//!
//! ```text
//!  kernel ─▶ rdinit=/calve-agent ─▶ mounts, modules, port ─┬─ bare ───▶ init (PID 1) + agent
//!                                                          ├─ system ─▶ init + agent beside ─▶ PID 1 becomes <toplevel>/init
//!                                                          └─ probe ──▶ a word on the console, end
//! ```

mod clock;
mod files;
mod limits;
mod modules;
mod mounts;
mod network;
mod parameters;
mod port;
mod power;
mod system;

use anyhow::Context as _;
use calve_wire::guard::PROBE_MARKER;

pub use limits::PidLimit;
pub use parameters::{Mode, Parameters};
pub use power::end_machine;

/// Runs as the first process of a guest. An error is on the console already when the machine ends with it.
pub fn run() -> anyhow::Result<()> {
    let result = boot();
    if let Err(error) = &result {
        // The console is all that there is; the guard keeps its last lines.
        eprintln!("calve-agent: {error:#}");
    }
    power::end_machine();
    result
}

fn boot() -> anyhow::Result<()> {
    mounts::base()?;
    let parameters = Parameters::read()?;
    let notes = modules::load_all();
    match &parameters.mode {
        Mode::Probe => {
            println!("{PROBE_MARKER}");
            Ok(())
        }
        Mode::Bare => bare(&parameters, notes),
        Mode::System { toplevel } => system(&parameters, toplevel, notes),
    }
}
