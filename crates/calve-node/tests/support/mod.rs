//! Orders of machines, and ways to look at what is left of one.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use calve_core::{Kind, MachineId, Timestamp};
use calve_node::Order;
use calve_store::Closure;
use calve_wire::machine::{Limits, MachineSpec, Network, Restart, Source, Workload};

pub use agent_client::{Client, HOUR, TOKEN, agent_program, copy_program, wait_for};

/// An id that no other test has.
pub fn new_id() -> MachineId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let random = u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 32 | u128::from(std::process::id());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    MachineId::new(Timestamp(now as u64), random)
}

/// A machine with nothing but its agent.
pub fn order(id: MachineId, attempt: u32) -> Order {
    Order {
        id,
        name: "berg".parse().expect("a name"),
        attempt,
        token: TOKEN.to_owned(),
        spec: MachineSpec::new(Kind::System, Workload::Base),
        closure: Closure::default(),
        remaining: HOUR,
    }
}

/// Processes whose command line holds the text: supervisors name their run directory there.
pub fn processes_with(text: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("a proc file system").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    pids.filter(|pid| *pid != std::process::id().cast_signed()).filter(holds).collect()
}

/// Cgroups of any hierarchy with this name.
pub fn cgroups_named(name: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: usize, name: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match () {
                () if entry.file_name() == name => found.push(path),
                () if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    walk(&path, depth - 1, name, found)
                }
                () => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 4, name, &mut found);
    found
}
