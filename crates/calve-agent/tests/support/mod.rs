//! A machine without walls.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Remaining, SandboxSpec};
use calve_wire::machine::{Limits, Network};

pub use agent_client::{Client, HOUR, PATIENCE, Stream, TOKEN, command, connect, shell, wait_for};

/// An agent with its run directory.
pub struct Machine {
    dir: tempfile::TempDir,
    pub run_dir: PathBuf,
    pub agent: Child,
}

impl Machine {
    pub fn start() -> Self {
        Self::with_lease(HOUR)
    }

    pub fn with_lease(remaining: Remaining) -> Self {
        Self::custom(remaining, "run", &[])
    }

    pub fn custom(remaining: Remaining, dir_name: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join(dir_name);
        fs::create_dir_all(&run_dir).expect("made");
        let spec = SandboxSpec {
            version: AGENT_PROTOCOL_VERSION,
            machine_id: "0".repeat(32),
            hostname: "test".to_owned(),
            token: TOKEN.to_owned(),
            remaining,
            written_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()
                as u64,
            store_paths: vec![],
            limits: Limits::default(),
            network: Network::Host,
        };
        fs::write(run_dir.join("sandbox.json"), serde_json::to_vec(&spec).expect("JSON")).expect("written");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let agent = Command::new(env!("CARGO_BIN_EXE_calve-agent"))
            .arg("plain")
            .args(["--run-dir", run_dir.to_str().expect("UTF-8")])
            .args(["--ready-fd", &writer.as_raw_fd().to_string()])
            .args(arguments)
            .spawn()
            .expect("it was built");
        drop(writer);
        let mut ready = Vec::new();
        File::from(reader).take(1).read_to_end(&mut ready).expect("readable");
        assert_eq!(ready, b"R", "the agent did not get ready");
        Self { dir, run_dir, agent }
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    pub fn stream(&self) -> UnixStream {
        connect(&self.socket())
    }

    /// A client that has said hello and was welcomed.
    pub fn connect(&self) -> Client {
        self.connect_after(0)
    }

    pub fn connect_after(&self, log_seq: u64) -> Client {
        let mut client = Client::new(self.stream().into());
        client.preamble();
        client.hello(log_seq);
        client
    }

    pub fn kill_agent(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }

    /// Waits for the agent's own end.
    pub fn wait_gone(&mut self) {
        wait_for("the agent's end", || self.agent.try_wait().expect("a child").is_some());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill_agent();
    }
}

/// Whether a process with exactly these arguments is alive.
pub fn is_alive(arguments: &[&str]) -> bool {
    let wanted: Vec<u8> = arguments.iter().flat_map(|text| text.bytes().chain([0])).collect();
    let entries = fs::read_dir("/proc").expect("a proc filesystem");
    entries.flatten().any(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted))
}
