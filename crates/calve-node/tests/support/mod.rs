//! A small server's side of the agent protocol, and ways to look at what is left of a machine.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use calve_core::{Kind, MachineId, Timestamp};
use calve_node::Order;
use calve_store::Closure;
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, LogEntry, Token};
use calve_wire::machine::{Limits, MachineSpec, Network, Program, Restart, Source, Workload};

pub const TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Longest wait for anything; a loaded host is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const HOUR: Remaining = Remaining { until_deadline_ms: Some(3_600_000), grace_ms: 1000 };

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
        spec: MachineSpec {
            kind: Kind::System,
            workload: Workload::Base,
            driver: None,
            limits: Limits::default(),
            network: Network::None,
            store: None,
            ports: vec![],
            health: None,
            restart: Restart::Never,
            source: Source::default(),
        },
        closure: Closure::default(),
        remaining: HOUR,
    }
}

/// The agent's program beside the tests' own.
pub fn agent_binary() -> PathBuf {
    let own = std::env::current_exe().expect("known");
    let dir = own.parent().and_then(Path::parent).expect("tests lie in deps/");
    let agent = std::env::var_os("CALVE_AGENT").map_or_else(|| dir.join("calve-agent"), PathBuf::from);
    assert!(agent.exists(), "{} is missing: cargo build -p calve-agent", agent.display());
    agent
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
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

/// The server's side of one connection.
pub struct Client {
    link: UnixStream,
    decoder: Decoder,
    pub status: Option<Status>,
    pub log: Vec<LogEntry>,
}

impl Client {
    /// Connects, says hello, and waits to be welcomed.
    pub fn connect(socket: &Path) -> Self {
        let dir = File::open(socket.parent().expect("a file")).expect("the run directory is there");
        let short =
            format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), socket.file_name().expect("a file").display());
        let link = UnixStream::connect(short).expect("the agent listens");
        link.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let token: Token = TOKEN.parse().expect("a token");
        let mut client = Self { link, decoder: Decoder::new(token.clone()), status: None, log: vec![] };
        client.link.write_all(&token.preamble()).expect("the agent reads");
        client.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq: 0, remaining: HOUR });
        client.until(|client| client.status.is_some());
        client
    }

    pub fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
        self.link.write_all(&bytes).expect("the agent reads");
    }

    pub fn start(&mut self, path: &str, args: &[&str]) {
        let program = Program {
            path: path.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: BTreeMap::new(),
            cwd: None,
            extra_roots: vec![],
            work_tree: None,
            stdin: false,
        };
        self.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    }

    pub fn until_phase(&mut self, phase: Phase) -> Status {
        self.until(|client| client.status.as_ref().is_some_and(|status| status.phase == phase));
        self.status.clone().expect("just seen")
    }

    /// Waits for the end and all of the output.
    pub fn until_ended(&mut self) -> Status {
        let status = self.until_phase(Phase::Ended);
        self.until(|client| status.log_seq == client.log.last().map_or(0, |entry| entry.seq));
        status
    }

    pub fn stdout(&self) -> String {
        let entries = self.log.iter().filter(|entry| entry.channel == Channel::Stdout);
        String::from_utf8_lossy(&entries.flat_map(|entry| entry.bytes.iter().copied()).collect::<Vec<_>>())
            .into_owned()
    }

    fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            let mut bytes = [0; 65536];
            let count = self.link.read(&mut bytes).expect("the agent speaks in time");
            assert!(count > 0, "the agent hung up; status {:?}", self.status);
            self.decoder.push(&bytes[..count]);
            while let Some(incoming) = self.decoder.next().expect("the agent sends frames") {
                match incoming {
                    Incoming::Frame(Frame::Control(json)) => {
                        match serde_json::from_slice(&json).expect("a message") {
                            FromAgent::Welcome { status, .. } | FromAgent::Status { status } => {
                                self.status = Some(status)
                            }
                            _ => {}
                        }
                    }
                    Incoming::Frame(Frame::Log(entry)) => self.log.push(entry),
                    Incoming::Frame(Frame::Data { .. }) | Incoming::Connected => {}
                }
            }
        }
    }
}
