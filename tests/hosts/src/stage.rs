//! A host and a server that reaches it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use e2e::{Home, Ran, bin_dir, finish, wait_until};

use crate::SshHost;

/// A host, and a server whose `ssh` is that of the host's user.
pub struct Stage {
    /// Of the server.
    pub home: Home,
    /// The host.
    pub host: SshHost,
    server: Option<Child>,
}

impl Stage {
    /// With a host whose disk has so many MiB, which nobody knows.
    pub fn set(disk_mib: u64) -> Self {
        let mut stage = Self { home: Home::alone(), host: SshHost::boot(disk_mib), server: None };
        stage.serve();
        stage
    }

    /// One whose user knows the host's key.
    pub fn introduced() -> Self {
        let stage = Self::set(256);
        stage.host.introduce();
        stage
    }

    /// `calve ARGS`; a server that it may have to start is one of this stage.
    pub fn calve<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        calve(&self.home, &self.host.client(), arguments)
    }

    /// Starts the server.
    pub fn serve(&mut self) {
        let mut command = self.calve(["server"]);
        self.server = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        let socket = self.home.path().join("run/calve.sock");
        wait_until("the server to listen", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// Kills it.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("it was started");
        server.kill().expect("it was there");
        server.wait().expect("it ends");
    }

    /// `calve run` of a shell's script on the host.
    pub fn command(&self, on: &str, arguments: &[&str], script: &str) -> Command {
        let mut command = self.calve(["run", "--on", on]);
        command.args(arguments).arg(self.home.app()).args(["--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same to its end.
    pub fn run(&self, on: &str, arguments: &[&str], script: &str) -> Ran {
        finish(self.command(on, arguments, script).spawn().expect("it starts"))
    }

    /// Waits until nothing of calve is on the host.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        wait_until("the host to be given back", || self.host.left().is_empty());
    }

    /// The log of the server.
    pub fn server_log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("data/server.log")).unwrap_or_default()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("server: {}\nsshd: {}\nleft: {}", self.server_log(), self.host.log(), self.host.left());
        }
        if let Some(server) = &mut self.server {
            self.home.run(&["rm", "--all"]);
            self.home.run(&["server", "stop"]);
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// `calve ARGS` for a server of this home, whose `ssh` is that of a host's user.
pub fn calve<'a>(home: &Home, client: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = home.command(arguments);
    command.env("CALVE_SSH", client).env("USER", "tester");
    command.env("CALVE_AGENT", agent()).env_remove("CALVE_SWITCH");
    command
}

/// The agent for hosts; what else goes there lies beside it.
pub fn agent() -> PathBuf {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(stripped).join("calve-agent")
}

/// A directory with the programs without their symbols, which are most of a debug build: they go over the wire in each test.
fn stripped() -> PathBuf {
    let place = bin_dir().join("hosts-tests");
    std::fs::create_dir_all(&place).expect("a directory");
    let strip = |name: &str| {
        // Of two tests that run at once each has whole files.
        let aside = place.join(format!("{name}.{}", std::process::id()));
        let mut strip = Command::new("strip");
        let done = strip.arg("-o").arg(&aside).arg(bin_dir().join(name)).status();
        done.is_ok_and(|status| status.success()) && std::fs::rename(aside, place.join(name)).is_ok()
    };
    if ["calve-agent", "calve-switch"].into_iter().all(strip) { place } else { bin_dir().to_owned() }
}
