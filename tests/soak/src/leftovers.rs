//! What machines can leave on a host: processes, network devices, cgroups, mounts, packet rules, files.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::Home;

/// What there was of the host before.
pub struct Host {
    devices: BTreeSet<String>,
    rules: usize,
}

impl Host {
    pub fn look() -> Self {
        Self { devices: names(Path::new("/sys/class/net")), rules: rules().len() }
    }
}

/// Everything that is left of the machines with these ids and of this home, each in one line.
pub fn of(home: &Home, ids: &BTreeSet<String>, before: &Host) -> Vec<String> {
    let root = home.path().to_str().expect("a plain path");
    let mut left = Vec::new();
    left.extend(home.processes().into_iter().map(|line| format!("process {line}")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("a list of mounts");
    left.extend(mounts.lines().filter(|line| line.contains(root)).map(|line| format!("mount {line}")));
    let mut cgroups = Vec::new();
    directories(Path::new("/sys/fs/cgroup"), 6, &mut |path| {
        if path.file_name().is_some_and(|name| ids.contains(&*name.to_string_lossy())) {
            cgroups.push(format!("cgroup {}", path.display()));
        }
    });
    left.extend(cgroups);
    // Others on this host may make devices and rules too: only those that look like a machine's count.
    for device in names(Path::new("/sys/class/net")).difference(&before.devices) {
        if ["tap", "calve", "tun", "veth"].iter().any(|prefix| device.starts_with(prefix)) {
            left.push(format!("network device {device}"));
        }
    }
    let rules = rules();
    if rules.len() > before.rules {
        left.extend(rules.iter().filter(|rule| rule.contains("calve")).map(|rule| format!("rule {rule}")));
    }
    for dir in ["run/m", "run/lazy", "data/logs"] {
        files(&home.path().join(dir), dir, ids, &mut left);
    }
    left
}

/// Run directories and logs below `dir`: what is named by a machine.
fn files(dir: &Path, what: &str, ids: &BTreeSet<String>, left: &mut Vec<String>) {
    directories(dir, 3, &mut |path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_id = name.len() == 32 && name.bytes().all(|c| c.is_ascii_hexdigit());
        if is_id || ids.contains(&name) {
            left.push(format!("{what}: {}", path.display()));
        }
    });
}

fn directories(dir: &Path, depth: u32, found: &mut impl FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found(&entry.path());
        if depth > 1 {
            directories(&entry.path(), depth - 1, found);
        }
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The host's packet rules, where it has a tool that shows them.
fn rules() -> Vec<String> {
    let shown = |command: &str, args: &[&str]| {
        let output = Command::new(command).args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = shown("nft", &["list", "ruleset"]).or_else(|| shown("iptables-save", &[])).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
