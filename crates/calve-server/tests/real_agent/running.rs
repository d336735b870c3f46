//! A `calve-agent plain` process of a test.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_client::agent_program;
use calve_core::MachineId;
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, SandboxSpec, ToAgent};
use calve_wire::machine::{Limits, Network, Program, Restart};

use crate::fake_agent::{TOKEN, remaining};

/// A running agent; it ends with this.
pub struct RunningAgent {
    pub id: MachineId,
    run_dir: PathBuf,
    child: Child,
}

impl RunningAgent {
    /// Starts one with a run directory under `dir`. Its socket appears a little later.
    pub fn start(dir: &Path, id: MachineId) -> Self {
        let run_dir = dir.join(format!("run-{id}"));
        std::fs::create_dir(&run_dir).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let spec = SandboxSpec {
            version: AGENT_PROTOCOL_VERSION,
            machine_id: id.to_string(),
            hostname: "test".into(),
            token: TOKEN.into(),
            remaining: remaining(),
            written_unix_ms: now.as_millis() as u64,
            store_paths: Vec::new(),
            limits: Limits::default(),
            network: Network::Host,
        };
        std::fs::write(run_dir.join("sandbox.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let child = Command::new(agent_program())
            .arg("plain")
            .arg("--run-dir")
            .arg(&run_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { id, run_dir, child }
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The message that starts a shell script as the workload.
pub fn start(script: &str, stdin: bool) -> ToAgent {
    let program = Program {
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        cwd: None,
        extra_roots: Vec::new(),
        work_tree: None,
        stdin,
    };
    ToAgent::Start { program: Some(program), restart: Restart::Never, health: None }
}

/// Leaves the first bytes of one more frame in a machine's log, as a write does that was cut off.
pub fn tear(log_dir: &Path, bytes: u64) {
    let Ok(files) = std::fs::read_dir(log_dir) else { return };
    if let Some(last) = files.map(|file| file.unwrap().path()).max() {
        let torn = [0, 0, 0, 90, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut file = OpenOptions::new().append(true).open(last).unwrap();
        file.write_all(&torn[..usize::try_from(bytes).unwrap()]).unwrap();
    }
}
