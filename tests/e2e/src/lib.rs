//! What the end-to-end tests share: a home of its own for each, the built binaries, and waiting on conditions.

mod emulator;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use emulator::emulator;

/// How long a condition may take before the test fails: emulated guests on a busy machine are slow.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The directory of the built binaries; they are built first, so that no test runs an old one.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let exe = std::env::current_exe().expect("a test has a path");
        let dir = exe.parent().expect("target/<triple>/<profile>");
        // Programs lie where the binaries do, tests a directory below.
        let dir = dir.parent().filter(|_| dir.ends_with("deps")).unwrap_or(dir).to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "calve", "--package", "calve-agent", "--bins"]);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the binaries build");
        dir
    })
}

/// A home of its own: state, server and machines of one test. Everything is gone when it is dropped.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty home that shares kernels, initrds and closures' images with those of other tests: each is made once,
    /// and whether guests boot under KVM is tried once.
    pub fn new() -> Self {
        let home = Self::alone();
        let images = bin_dir().join("e2e-images");
        std::fs::create_dir_all(&images).expect("a directory");
        std::fs::create_dir(home.path().join("data")).expect("a directory");
        std::os::unix::fs::symlink(images, home.path().join("data/images")).expect("a link");
        home
    }

    /// An empty home that shares nothing.
    pub fn alone() -> Self {
        Self { dir: tempfile::Builder::new().prefix("calve-e2e-").tempdir().expect("a temporary directory") }
    }

    /// Its directory; `data/` and `run/` are calve's, the rest is the test's.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `calve ARGS` in this home.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(bin_dir().join("calve"));
        command.args(args).env("CALVE_HOME", self.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command.env_remove("CALVE_SERVER").env_remove("CALVE_TOKEN");
        command
    }

    /// Runs `calve ARGS` to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args))
    }

    /// Runs `calve ARGS`, which must succeed, and gives its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "calve {args:?}: {ran:?}");
        ran.stdout
    }

    /// Runs `calve ARGS --json`, which must succeed, and parses its output.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("calve {args:?} --json: {error}: {text}"))
    }

    /// The state of a machine.
    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        self.json(&["status", name])["state"].as_str().expect("a state").to_owned()
    }

    /// Waits until the machine is in `state`.
    #[track_caller]
    pub fn wait_for_state(&self, name: &str, state: &str) {
        wait_until(&format!("{name} to be {state}"), || self.state(name) == state);
    }

    /// Waits until the machine exists and runs.
    #[track_caller]
    pub fn wait_for_running(&self, name: &str) {
        wait_until(&format!("{name} to run"), || {
            let ran = self.run(&["status", name, "--json"]);
            ran.code == 0 && ran.stdout.contains("\"running\"")
        });
    }

    /// A closure-to-be with one static program: `DIR/bin/busybox`.
    pub fn app(&self) -> String {
        let bin = self.path().join("app/bin");
        if !bin.exists() {
            std::fs::create_dir_all(&bin).expect("a directory");
            std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        }
        bin.join("busybox").to_str().expect("a plain path").to_owned()
    }

    /// The server's process id.
    pub fn server_pid(&self) -> i32 {
        let status = self.json(&["server", "status"]);
        i32::try_from(status["pid"].as_i64().expect("a pid")).expect("a pid")
    }

    /// Kills the server as a crash would, and waits until it is gone.
    pub fn kill_server(&self) {
        let pid = self.server_pid();
        kill(pid, 9);
        wait_until("the server to be gone", || !alive(pid));
    }

    /// Processes that have this home in their command line or environment, besides the server.
    pub fn processes(&self) -> Vec<String> {
        let home = self.path().to_str().expect("a plain path");
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let read = |file: &str| {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let line = read("cmdline");
            if line.contains(home) && !line.contains("calve server") {
                found.push(line);
            }
        }
        found
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.path().join("run").exists() {
            self.run(&["rm", "--all"]);
            self.run(&["server", "stop"]);
        }
        if !std::thread::panicking() {
            // A guest that tries KVM outlives its server for some seconds.
            wait_until("no process to be left", || self.processes().is_empty());
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs the command to its end.
    pub fn of(mut command: Command) -> Self {
        Self::from_output(&command.output().expect("the binary runs"))
    }

    /// From what was gathered.
    pub fn from_output(output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output.status.code().or_else(|| output.status.signal().map(|s| 128 + s)).expect("an end"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the child has ended.
pub fn finish(child: Child) -> Ran {
    Ran::from_output(&child.wait_with_output().expect("it ends"))
}

/// Sends a signal to a process.
pub fn kill(pid: i32, signal: i32) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(status.expect("kill runs").success());
}

/// Whether the process is alive (a zombie is not).
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Runs a program of `tests/standin`, which builds systems and disks with them, and gives what it printed.
pub fn standin(program: &str, args: &[&str]) -> String {
    let program = format!("{}/../standin/{program}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&program).args(args).stderr(Stdio::inherit()).output().expect("it starts");
    assert!(output.status.success(), "{program} {args:?}");
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}

/// Whether this test may mount what it likes. The first time it is run again, by its name, where it may; it is not shown where no
/// mount namespace can be made.
pub fn may_mount(test: &str) -> bool {
    const AGAIN: &str = "CALVE_TEST_MOUNTS";
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args((!is_root).then_some("--map-root-user")).args(["--mount", "--propagation", "private"]);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        println!("not shown: no mount namespace can be made");
        return false;
    }
    let own = std::env::current_exe().expect("a test has a path");
    let again = unshare().arg(own).args(["--exact", test]).env(AGAIN, "1").status();
    assert!(again.expect("it starts").success(), "{test} in a mount namespace");
    false
}
