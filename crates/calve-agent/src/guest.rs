//! The agent as the first process of a guest: makes the machine a place where programs run, then starts init and the
//! agent proper; with a system, it hands the place over to the system's own init.
//!
//! ```text
//!  kernel ─▶ rdinit=/calve-agent ─▶ mounts, modules ─┬─ bare ───▶ init (PID 1) + agent
//!                                                    ├─ system ─▶ init + agent beside ─▶ PID 1 becomes <toplevel>/init
//!                                                    ├─ cloud ──▶ user data ───────▶ init (PID 1) + agent that dials
//!                                                    └─ probe ──▶ a word on the console, end
//! ```

mod bare;
mod clock;
mod cloud;
mod dhcp;
mod files;
mod first;
mod fw_cfg;
mod limits;
mod metadata;
mod modules;
mod mounts;
mod network;
mod parameters;
mod port;
mod power;
pub mod sources;
mod system;

use calve_wire::guard::PROBE_MARKER;

use parameters::{Mode, Parameters};

pub use system::run_beside_system;

/// Runs as the first process of a guest; returns only where the machine cannot be ended.
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
    if parameters::is_cloud()? {
        // A wrong end is an end that is not paid for.
        let result = cloud::run(modules::load_all());
        if let Err(error) = &result {
            eprintln!("calve-agent: {error:#}");
        }
        power::power_off();
        return result;
    }
    let parameters = Parameters::read()?;
    let mut notes = modules::load_all();
    if parameters.cpus_unlimited {
        notes
            .push("the cpu limit is not enforced: `calve doctor` says what this host lacks (cgroups)".into());
    }
    if let Some(unix_ms) = parameters.unix_ms {
        clock::set_if_behind(unix_ms);
    }
    match &parameters.mode {
        Mode::Probe => {
            println!("{PROBE_MARKER}");
            Ok(())
        }
        Mode::Bare => bare::run(parameters, notes),
        Mode::System { toplevel } => {
            system::hand_over(&parameters, toplevel, notes).map(|never| match never {})
        }
    }
}
