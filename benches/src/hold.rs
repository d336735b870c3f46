//! Many machines at once, each with a sleep, asked for as a user asks; then all stopped and gone.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_core::{DriverName, MachineId};
use calve_node::run_dir::RunDirs;

use crate::Effort;
use crate::home::{Home, megabytes};
use crate::support::{cgroups_named, processes_with, wait_for};
use crate::table::Table;
use crate::times::millis;

/// Commands that are under way at once.
const AT_ONCE: usize = 8;
/// A day: longer than any measurement.
const SLEEP_SECONDS: u32 = 86_400;

pub fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    let app = home.app()?;
    // The first one starts the server and adds the tree.
    home.calve(&["run", "--driver", "sandbox", &app, "--", "true"])?;
    let count = effort.machines;
    let memory_before = memory_available_kib()?;
    let begun = Instant::now();
    // A time that no other process sleeps, so that these are told by it.
    let seconds_asleep = (SLEEP_SECONDS + std::process::id()).to_string();
    run_all(&home, &app, &seconds_asleep, count)?;
    let dirs = RunDirs::new(&home.dirs().run, DriverName::Sandbox);
    wait_for("all to sleep", || running(&home) == count);
    let held = begun.elapsed();
    let memory = memory_before.saturating_sub(memory_available_kib()?);
    let ids = dirs.list()?;
    ensure!(ids.len() == count, "{} run directories of {count} machines", ids.len());
    let rss = megabytes(home.server_rss_kib()?);

    let begun = Instant::now();
    let names: Vec<String> = living(&home, "name");
    let names = names.iter().map(String::as_str);
    home.calve(&std::iter::once("stop").chain(names).collect::<Vec<_>>())?;
    let stopped = begun.elapsed();
    ensure!(living(&home, "name").is_empty(), "machines live after they were stopped");
    nothing_left(&home, &dirs, &ids, &seconds_asleep)?;

    let each = |time: Duration| millis(time / u32::try_from(count).unwrap_or(u32::MAX));
    let seconds = |time: Duration| format!("{:.1} s, {} each", time.as_secs_f64(), each(time));
    table.note(&format!("{count} sandboxed sleeps at once, to the last asleep"), seconds(held));
    table.note("… stopped, and no process, cgroup or run directory left", seconds(stopped));
    table.note("… memory of a machine", format!("{:.2} MB", megabytes(memory / count as u64)));
    table.note("… the server's meanwhile", format!("{rss:.1} MB"));
    Ok(())
}

fn run_all(home: &Home, app: &str, seconds: &str, count: usize) -> anyhow::Result<()> {
    let mut left = count;
    while left > 0 {
        let some = left.min(AT_ONCE);
        left -= some;
        let run = || home.command(&["run", "-d", "--driver", "sandbox", app, "--", "sleep", seconds]);
        let children: Result<Vec<_>, _> =
            (0..some).map(|_| run().stdout(std::process::Stdio::null()).spawn()).collect();
        for mut child in children? {
            let status = child.wait()?;
            ensure!(status.success(), "calve run -d: {status}");
        }
    }
    Ok(())
}

fn running(home: &Home) -> usize {
    living(home, "state").iter().filter(|state| *state == "running").count()
}

/// A field of every machine that has not ended.
fn living(home: &Home, field: &str) -> Vec<String> {
    let listed = home.calve(&["ps", "--json"]).unwrap_or_default();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap_or_default();
    listed.iter().filter_map(|machine| Some(machine[field].as_str()?.to_owned())).collect()
}

fn nothing_left(home: &Home, dirs: &RunDirs, ids: &[MachineId], seconds: &str) -> anyhow::Result<()> {
    let left = dirs.list()?;
    ensure!(left.is_empty(), "run directories are left: {left:?}");
    let server = home.server_pid()?;
    for text in [home.path().to_str().context("a plain path")?, seconds] {
        let left: Vec<_> = processes_with(text).into_iter().filter(|pid| *pid != server).collect();
        ensure!(left.is_empty(), "processes are left: {left:?}");
    }
    let left: Vec<_> = ids.iter().flat_map(|id| cgroups_named(&id.to_string())).collect();
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    // Ended children that nobody waited for hold an entry of the process table each.
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
    ensure!(children.trim().is_empty(), "the server has children left: {children}");
    Ok(())
}

fn memory_available_kib() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable")).context("a line")?;
    Ok(line.split_ascii_whitespace().nth(1).context("a number")?.parse()?)
}
