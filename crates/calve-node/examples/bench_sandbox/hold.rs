//! Many machines at once, each with a sleep; then all gone.

use std::fs;
use std::time::Instant;

use calve_core::{DriverName, MachineId};
use calve_node::Driver;
use calve_node::driver::sandbox::SandboxDriver;
use calve_node::run_dir::RunDirs;
use calve_wire::agent::{Phase, SandboxTraces};

use crate::Store;
use crate::support::{Client, agent_binary, cgroups_named, processes_with};

/// Creations that are under way at once.
const AT_ONCE: usize = 8;

pub async fn hold(count: usize) {
    let store = Store::new(1);
    let runtime = tempfile::tempdir().expect("a directory");
    let driver = SandboxDriver::new(runtime.path(), agent_binary());
    let before = memory_available_kib();
    let begun = Instant::now();
    let orders: Vec<_> = (0..count).map(|_| store.order()).collect();
    for some in orders.chunks(AT_ONCE) {
        let creations: Vec<_> = some
            .iter()
            .cloned()
            .map(|order| {
                let driver = driver.clone();
                tokio::spawn(async move { driver.create(&order).await })
            })
            .collect();
        for creation in creations {
            creation.await.expect("no panic").expect("it can be made");
        }
        for order in some {
            let mut client = Client::connect(&driver.agent_socket(order.id));
            client.start(&store.program(), &["sleep", "3600"]);
            client.until_phase(Phase::Running);
        }
    }
    let sleeping = begun.elapsed();
    let dirs = RunDirs::new(runtime.path(), DriverName::Sandbox);
    let (supervisors, inits) = pids(&dirs, orders.iter().map(|order| order.id));
    println!("{count} sandboxed sleeps in {:.2} s", sleeping.as_secs_f64());
    println!(
        "  memory of all, by MemAvailable: {} KiB each",
        (before - memory_available_kib()) / count as i64
    );
    println!(
        "  of a supervisor: {} KiB; of an init: {} KiB (private, mean)",
        private_kib(&supervisors),
        private_kib(&inits)
    );
    assert_eq!(driver.list().await.expect("listed").len(), count);
    let begun = Instant::now();
    for some in orders.chunks(AT_ONCE) {
        let ends: Vec<_> = some
            .iter()
            .map(|order| {
                let (driver, id) = (driver.clone(), order.id);
                tokio::spawn(async move { driver.destroy(id).await })
            })
            .collect();
        for end in ends {
            end.await.expect("no panic").expect("it can be destroyed");
        }
    }
    println!("  all destroyed in {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!(driver.list().await.expect("listed"), []);
    assert_eq!(processes_with(&runtime.path().display().to_string()), Vec::<i32>::new());
    assert!(orders.iter().all(|order| cgroups_named(&order.id.to_string()).is_empty()));
    println!("  no process, cgroup or file is left");
}

fn pids(dirs: &RunDirs, ids: impl Iterator<Item = MachineId>) -> (Vec<i32>, Vec<i32>) {
    let both = ids.map(|id| {
        let traces = fs::read(dirs.path(id).join("traces.json")).expect("written");
        let traces: SandboxTraces = serde_json::from_slice(&traces).expect("JSON");
        (dirs.meta(id).expect("written").process.pid, traces.init.expect("made").pid)
    });
    both.unzip()
}

/// Mean memory that a process shares with no other.
fn private_kib(pids: &[i32]) -> i64 {
    let of = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("Private_"));
        lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<i64>().ok()).sum::<i64>()
    };
    pids.iter().map(of).sum::<i64>() / pids.len().max(1) as i64
}

fn memory_available_kib() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").expect("a proc file system");
    let line = text.lines().find(|line| line.starts_with("MemAvailable")).expect("it is there");
    line.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}
