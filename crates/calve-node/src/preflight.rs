//! What this host lacks for each area, and the command that mends it.

mod agent;
mod disk;
mod fuse;
mod nix;
mod tun;

use std::path::Path;

use calve_wire::doctor::{Check, CheckStatus};

/// What the sandbox driver needs. May take a second: it makes a sandbox.
pub fn sandbox(agent_binary: &Path) -> Vec<Check> {
    let (found, checks) = agent::probe(agent_binary);
    std::iter::once(found).chain(checks).collect()
}

/// What the server and the commands need whatever the driver: room on disk, Nix, network devices, mounts.
pub fn host(runtime_dir: &Path, data_dir: &Path) -> Vec<Check> {
    vec![
        disk::room("disk space for data", data_dir),
        disk::room("disk space for run directories", runtime_dir),
        nix::present(),
        tun::present(),
        fuse::present(),
    ]
}

/// All is well.
fn ok(area: &str, name: &str, found: impl Into<String>) -> Check {
    Check {
        area: area.to_owned(),
        name: name.to_owned(),
        status: CheckStatus::Ok,
        found: found.into(),
        cost: String::new(),
        mend: None,
    }
}

/// Something is not as it should be.
fn bad(status: CheckStatus, area: &str, name: &str, found: String, cost: &str, mend: Option<&str>) -> Check {
    Check { status, cost: cost.to_owned(), mend: mend.map(str::to_owned), ..ok(area, name, found) }
}
