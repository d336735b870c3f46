//! Other ways to run a program in namespaces, with the same mounts as ours.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::store::Store;

/// The program by itself: what starting a process costs.
pub const BARE: &str = "bare process";

/// What the program says, with its newline in one write.
pub const SAYS: &str = "up";
/// The program's arguments.
pub const ARGS: [&str; 2] = ["echo", SAYS];

/// A way that is installed here.
pub struct Peer {
    pub name: &'static str,
    argv: Vec<String>,
    /// What its command line refers to.
    _files: Option<tempfile::TempDir>,
}

impl Peer {
    /// Runs the program: the time to its first output, and to its end.
    pub fn run(&self) -> (Duration, Duration) {
        let begun = Instant::now();
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut said = [0; SAYS.len() + 1];
        let heard = child.stdout.as_mut().expect("piped").read_exact(&mut said);
        let first = begun.elapsed();
        let output = child.wait_with_output().expect("it ends");
        let time = begun.elapsed();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && heard.is_ok(), "{}: {} {errors}", self.name, output.status);
        (first, time)
    }
}

/// Those that are installed, for this store.
pub fn peers(store: &Store) -> Vec<Peer> {
    let root = rustix::process::geteuid().is_root();
    let bare = Peer { name: BARE, argv: host_program(store), _files: None };
    let bwrap = installed("bwrap").then(|| bwrap(store));
    let runc = (root && installed("runc")).then(|| runc(store));
    let nspawn = (root && installed("systemd-nspawn")).then(|| nspawn(store));
    [Some(bare), bwrap, runc, nspawn].into_iter().flatten().collect()
}

fn host_program(store: &Store) -> Vec<String> {
    let (host, _) = store.mounts().next().expect("one path");
    argv(host.join("bin/busybox").display().to_string()).into()
}

fn argv(program: String) -> [String; 3] {
    let [echo, says] = ARGS.map(str::to_owned);
    [program, echo, says]
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn bwrap(store: &Store) -> Peer {
    let mut argv =
        strings(&["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "berg"]);
    for (host, seen) in store.mounts() {
        argv.extend(["--ro-bind".to_owned(), host.display().to_string(), seen]);
    }
    argv.extend(strings(&["--proc", "/proc", "--dev", "/dev"]));
    for dir in ["/tmp", "/work", "/var", "/run", "/root"] {
        argv.extend(strings(&["--tmpfs", dir]));
    }
    argv.extend(self::argv(store.program()));
    Peer { name: "bwrap", argv, _files: None }
}

fn runc(store: &Store) -> Peer {
    let bundle = tempfile::tempdir().expect("a directory");
    let root = bundle.path().join("rootfs");
    for (_, seen) in store.mounts() {
        fs::create_dir_all(root.join(&seen[1..])).expect("made");
    }
    let spec = Command::new("runc").arg("spec").current_dir(bundle.path()).status().expect("it starts");
    assert!(spec.success());
    let file = bundle.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("made")).expect("JSON");
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(argv(store.program()));
    let mounts = config["mounts"].as_array_mut().expect("a list");
    for (host, seen) in store.mounts() {
        mounts.push(serde_json::json!({
            "destination": seen, "source": host, "type": "bind", "options": ["bind", "ro", "nosuid", "nodev"],
        }));
    }
    for dir in ["/tmp", "/work", "/var", "/run", "/root"] {
        mounts.push(serde_json::json!({ "destination": dir, "source": "tmpfs", "type": "tmpfs" }));
        fs::create_dir_all(root.join(&dir[1..])).expect("made");
    }
    fs::write(file, serde_json::to_vec(&config).expect("JSON")).expect("written");
    let name = format!("calve-bench-{}-{}", std::process::id(), store.mounts().count());
    let argv =
        [strings(&["runc", "run", "--bundle"]), vec![bundle.path().display().to_string(), name]].concat();
    Peer { name: "runc", argv, _files: Some(bundle) }
}

fn nspawn(store: &Store) -> Peer {
    let root = tempfile::tempdir().expect("a directory");
    for dir in ["usr", "etc", "nix/store"] {
        fs::create_dir_all(root.path().join(dir)).expect("made");
    }
    fs::write(root.path().join("etc/os-release"), "ID=none\n").expect("written");
    let mut argv =
        strings(&["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe"]);
    argv.extend(strings(&["--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]));
    argv.push(format!("--directory={}", root.path().display()));
    for (host, seen) in store.mounts() {
        argv.push(format!("--bind-ro={}:{seen}", host.display()));
    }
    for dir in ["/tmp", "/work", "/var", "/root"] {
        argv.push(format!("--tmpfs={dir}"));
    }
    argv.extend(self::argv(store.program()));
    Peer { name: "systemd-nspawn", argv, _files: Some(root) }
}

fn installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}
