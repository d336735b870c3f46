//! What the host is like, and this program's own place on it.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use calve_wire::system::{HostFacts, HostSwitch, SWITCH_PROGRAM};
use sha2::{Digest, Sha256};

use crate::begin;
use crate::host::Host;
use crate::profile;
use crate::program::{Program, environment};

/// Longest wait for systemd to tell which units have failed.
const UNITS_MAX: Duration = Duration::from_secs(10);
/// Past switches that are told.
const HISTORY_MAX: usize = 200;

/// What the host's system is like.
pub fn facts(host: &Host) -> anyhow::Result<HostFacts> {
    Ok(HostFacts {
        current: host.current(),
        booted: host.booted(),
        profile: profile::current(host),
        failed_units: failed_units(host),
        generations: profile::generations(host),
        history: history(host),
        switch: begin::status(host)?,
    })
}

/// Puts this file, which was brought under another name, where the agent finds it.
pub fn install(host: &Host, sum: &str) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let digest = Sha256::digest(std::fs::read(&own)?);
    let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    anyhow::ensure!(found == sum, "{} came damaged: its hash is {found}, not {sum}", own.display());
    std::fs::File::open(&own)?.sync_all()?;
    std::fs::rename(&own, host.kept(SWITCH_PROGRAM)).context("it cannot be put in its place")?;
    let mut file = std::fs::File::create(host.kept("sum"))?;
    file.write_all(sum.as_bytes())?;
    Ok(file.sync_all()?)
}

/// The hash that was told when this program was put in its place.
pub fn version(host: &Host) -> String {
    std::fs::read_to_string(host.kept("sum")).unwrap_or_default().trim().to_owned()
}

/// The ends of past switches, the oldest first, each once: an end in the middle of writing may have written one twice.
pub fn history(host: &Host) -> Vec<HostSwitch> {
    let text = std::fs::read_to_string(host.kept("history")).unwrap_or_default();
    let mut all: Vec<HostSwitch> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    all.dedup_by(|later, earlier| later.id == earlier.id);
    all.split_off(all.len().saturating_sub(HISTORY_MAX))
}

fn failed_units(host: &Host) -> Option<Vec<String>> {
    if !host.is_real() || !host.path("/run/systemd/system").is_dir() {
        return None;
    }
    let mut command = std::process::Command::new(host.program(&[], "systemctl")?);
    environment(host, &[], &mut command);
    command.args(["--failed", "--plain", "--no-legend", "--no-pager"]);
    let (ended, said) = Program::start(command).and_then(|it| it.finish(UNITS_MAX)).ok()?;
    ended?;
    Some(said.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect())
}
