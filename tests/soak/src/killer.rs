//! Kills at random, with `kill -9`, and only what belongs to this soak's home.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::Home;

use crate::Options;

/// Whom it killed.
#[derive(Debug, Default)]
pub struct Kills {
    /// Servers; of one host they are the nodes too.
    pub servers: u64,
    /// Supervisors on the host: those of sandboxes are their agents, those of guests guard QEMU.
    pub supervisors: u64,
    /// Everything else: first processes of sandboxes, programs, QEMU.
    pub others: u64,
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Server,
    Supervisor,
    Other,
}

/// Kills until it is over.
pub fn kill_at_random(home: &Home, options: Options, over: &AtomicBool) -> Kills {
    let (mut kills, mut chance) = (Kills::default(), Chance::new(options.seed));
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(options.kill_every.mul_f64(0.5 + chance.below(100) as f64 / 100.0));
        let wanted = match chance.below(4) {
            0 | 1 => Role::Server,
            2 => Role::Supervisor,
            _ => Role::Other,
        };
        let found: Vec<u32> =
            processes(home).into_iter().filter(|(_, role)| *role == wanted).map(|it| it.0).collect();
        if found.is_empty() {
            continue;
        }
        let pid = found[chance.below(found.len() as u64) as usize];
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        if killed.is_ok_and(|status| status.success()) {
            match wanted {
                Role::Server => kills.servers += 1,
                Role::Supervisor => kills.supervisors += 1,
                Role::Other => kills.others += 1,
            }
        }
    }
    kills
}

/// The processes of this home, but for its clients: those that name it, and what they have begotten.
fn processes(home: &Home) -> Vec<(u32, Role)> {
    let home = home.path().to_str().expect("a plain path");
    let mut all: Vec<(u32, u32, String)> = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(parent) = parent_of(&entry.path()) else { continue };
        let read = |file: &str| {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        all.push((pid, parent, format!("{} {}", read("cmdline"), read("environ"))));
    }
    let names_it = |line: &str| line.contains(home);
    let role = |line: &str| {
        let command = line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        match () {
            () if command.contains("calve server") => Some(Role::Server),
            () if command.contains("calve-agent sandbox") || command.contains("calve-agent guard") => {
                Some(Role::Supervisor)
            }
            () if command.contains("calve-agent") || command.contains("qemu") => Some(Role::Other),
            () => None,
        }
    };
    let ours: Vec<(u32, Role)> = all
        .iter()
        .filter(|(_, _, line)| names_it(line))
        .filter_map(|(pid, _, line)| Some((*pid, role(line)?)))
        .collect();
    let supervised = |parent: u32| ours.iter().any(|(pid, role)| *pid == parent && *role == Role::Supervisor);
    let mut children: Vec<(u32, Role)> = all
        .iter()
        .filter(|(pid, parent, _)| supervised(*parent) && !ours.iter().any(|(known, _)| known == pid))
        .map(|(pid, _, _)| (*pid, Role::Other))
        .collect();
    children.extend(ours);
    children
}

fn parent_of(proc: &Path) -> Option<u32> {
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
