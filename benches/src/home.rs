//! A home of calve's own for one measurement, with the release binaries.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_server::dirs::Dirs;

/// How long a server may take to listen.
const LISTENS_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Everything of it is gone when it is dropped.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { dir: tempfile::Builder::new().prefix("calve-bench-").tempdir()? })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn dirs(&self) -> Dirs {
        Dirs { data: self.path().join("data"), run: self.path().join("run") }
    }

    /// `calve ARGS` in this home.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(beside("calve"));
        command.args(args).env("CALVE_HOME", self.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command.env("CALVE_AGENT", beside("calve-agent"));
        command.env_remove("CALVE_SERVER").env_remove("CALVE_TOKEN");
        command
    }

    /// Runs `calve ARGS`, which must succeed; its standard output.
    pub fn calve(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output().context("calve starts")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "calve {args:?}: {}: {said}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A closure-to-be with one static program, as a user has it: `app/bin/busybox`.
    pub fn app(&self) -> anyhow::Result<String> {
        let bin = self.path().join("app/bin");
        std::fs::create_dir_all(&bin)?;
        std::fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is installed")?;
        Ok(bin.join("busybox").display().to_string())
    }

    pub fn server_pid(&self) -> anyhow::Result<i32> {
        let status: serde_json::Value = serde_json::from_str(&self.calve(&["server", "status", "--json"])?)?;
        Ok(i32::try_from(status["pid"].as_i64().context("a pid")?)?)
    }

    /// The server's resident memory in KiB.
    pub fn server_rss_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server_pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("a resident size")?;
        Ok(line.split_ascii_whitespace().nth(1).context("a number")?.parse()?)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A server that only stops would still ask what it may use here, while the next measurement runs.
        if !self.dirs().data.exists() {
            return;
        }
        let _ = self.calve(&["rm", "--all"]);
        let _ = self.calve(&["server", "stop"]);
    }
}

/// Starts a server, and waits until it listens.
pub fn serve(command: &mut Command, listens: impl Fn() -> bool) -> anyhow::Result<Child> {
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let until = Instant::now() + LISTENS_MAX;
    while !listens() {
        ensure!(server.try_wait()?.is_none() && Instant::now() < until, "the server does not listen");
        std::thread::sleep(PAUSE);
    }
    Ok(server)
}

/// An address of this host that nobody listens at just now.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A binary of the same build.
pub fn beside(name: &str) -> PathBuf {
    std::env::current_exe().expect("known").with_file_name(name)
}

/// A resident size against what was promised of it, in MB as they are sold.
pub fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
