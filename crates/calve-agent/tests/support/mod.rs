//! A machine without walls and a client that speaks the protocol with its agent.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use calve_wire::agent::{
    AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, SandboxSpec, Status, Target, ToAgent,
};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, LogEntry};
use calve_wire::machine::{Exit, HealthCheck, Limits, Network, Program, Restart};

pub const TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Longest wait for anything; a loaded host is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const HOUR: Remaining = Remaining { until_deadline_ms: Some(3_600_000), grace_ms: 1000 };

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
        connect_long(&self.socket())
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
        let end = Instant::now() + PATIENCE;
        while self.agent.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < end, "the agent did not end");
            std::thread::sleep(Duration::from_millis(2));
        }
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

fn connect_long(path: &Path) -> UnixStream {
    let dir = File::open(path.parent().expect("a file")).expect("there");
    let short = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), path.file_name().expect("a file").display());
    UnixStream::connect(short).expect("the agent listens")
}

/// What came on one stream.
#[derive(Debug, Default)]
pub struct Stream {
    pub opened: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub closed: Vec<Channel>,
    /// How it ended: the exit, or why it failed.
    pub ended: Option<Result<Option<Exit>, String>>,
    /// Bytes that may still be sent.
    pub window: usize,
}

/// The server's side of one connection.
pub struct Client {
    link: File,
    decoder: Decoder,
    pub welcome: Option<Status>,
    pub status: Option<Status>,
    pub statuses: Vec<Status>,
    pub log: Vec<LogEntry>,
    pub streams: HashMap<u32, Stream>,
    pub stdin_window: usize,
    /// Whether log entries are acknowledged as they come.
    pub keeps: bool,
    /// Whether stream data is granted again as it comes.
    pub grants: bool,
    last_stream: u32,
}

impl Client {
    pub fn new(link: OwnedFd) -> Self {
        Self {
            link: link.into(),
            decoder: Decoder::new(TOKEN.parse().expect("a token")),
            welcome: None,
            status: None,
            statuses: vec![],
            log: vec![],
            streams: HashMap::new(),
            stdin_window: calve_wire::frame::STREAM_WINDOW_BYTES,
            keeps: true,
            grants: true,
            last_stream: 0,
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.link.write_all(bytes).expect("the agent reads");
    }

    pub fn preamble(&mut self) {
        self.raw(&TOKEN.parse::<calve_wire::frame::Token>().expect("a token").preamble());
    }

    pub fn hello(&mut self, log_seq: u64) {
        self.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq, remaining: HOUR });
        self.until(|client| client.welcome.is_some());
    }

    pub fn send(&mut self, message: &ToAgent) {
        self.try_send(message).expect("the agent reads");
    }

    pub fn try_send(&mut self, message: &ToAgent) -> io::Result<()> {
        let mut bytes = Vec::new();
        Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
        self.link.write_all(&bytes)
    }

    pub fn data(&mut self, stream: u32, data: &[u8]) {
        let mut bytes = Vec::new();
        Frame::Data { stream, channel: Channel::Stdin, bytes: data.to_vec() }.encode(&mut bytes);
        self.raw(&bytes);
    }

    /// Sends all of it as the window allows, then closes.
    pub fn data_all(&mut self, stream: u32, mut data: &[u8]) {
        while !data.is_empty() {
            self.until(|client| client.ended(stream) || client.window(stream) > 0);
            if self.ended(stream) {
                return;
            }
            let piece = data.len().min(self.window(stream)).min(50_000);
            self.data(stream, &data[..piece]);
            match stream {
                0 => self.stdin_window -= piece,
                _ => self.streams.get_mut(&stream).expect("open").window -= piece,
            }
            data = &data[piece..];
        }
        self.data(stream, &[]);
    }

    /// Whether the agent's preamble has come.
    pub fn is_connected(&self) -> bool {
        self.decoder.is_connected()
    }

    fn window(&self, stream: u32) -> usize {
        if stream == 0 { self.stdin_window } else { self.streams[&stream].window }
    }

    fn ended(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.ended.is_some())
    }

    pub fn start(&mut self, script: &str, restart: Restart) {
        self.start_with(script, restart, None, false);
    }

    pub fn start_with(&mut self, script: &str, restart: Restart, health: Option<HealthCheck>, stdin: bool) {
        self.send(&ToAgent::Start { program: Some(shell(script, stdin)), restart, health });
    }

    pub fn open(&mut self, target: Target) -> u32 {
        self.last_stream += 1;
        let stream = self.last_stream;
        let window = calve_wire::frame::STREAM_WINDOW_BYTES;
        self.streams.insert(stream, Stream { window, ..Stream::default() });
        self.send(&ToAgent::Open { stream, target });
        stream
    }

    /// Waits for the stream's last message and gives it up.
    pub fn end_of(&mut self, stream: u32) -> Stream {
        self.until(|client| client.ended(stream));
        self.streams.remove(&stream).expect("open")
    }

    pub fn exec(&mut self, script: &str) -> Stream {
        let stream = self.open(command(&["/bin/sh", "-c", script]));
        self.end_of(stream)
    }

    /// Waits for a phase.
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

    pub fn output(&self, channel: Channel) -> Vec<u8> {
        let entries = self.log.iter().filter(|entry| entry.channel == channel);
        entries.flat_map(|entry| entry.bytes.iter().copied()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output(Channel::Stdout)).into_owned()
    }

    /// Takes in what comes until the condition holds.
    pub fn until(&mut self, mut condition: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "waited too long; status {:?}", self.status);
            assert!(self.step(Duration::from_millis(100)), "the agent hung up; status {:?}", self.status);
        }
    }

    /// Takes in what comes within the time; false at the end of the connection.
    pub fn step(&mut self, time: Duration) -> bool {
        let mut polled = [rustix::event::PollFd::new(&self.link, rustix::event::PollFlags::IN)];
        let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
        if rustix::event::poll(&mut polled, Some(&time)).expect("pollable") == 0 {
            return true;
        }
        let mut bytes = [0; 65536];
        match self.link.read(&mut bytes) {
            Ok(0) | Err(_) => return false,
            Ok(count) => self.decoder.push(&bytes[..count]),
        }
        while let Some(incoming) = self.decoder.next().expect("the agent sends frames") {
            match incoming {
                Incoming::Connected => {}
                Incoming::Frame(frame) => self.take(frame),
            }
        }
        true
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Control(json) => self.control(serde_json::from_slice(&json).expect("a message")),
            Frame::Log(entry) => {
                let seq = entry.seq;
                self.log.push(entry);
                if self.keeps {
                    let _ = self.try_send(&ToAgent::LogKept { seq });
                }
            }
            Frame::Data { stream, channel, bytes } => {
                let Some(known) = self.streams.get_mut(&stream) else { return };
                match channel {
                    _ if bytes.is_empty() => known.closed.push(channel),
                    Channel::Stdout => known.stdout.extend(&bytes),
                    Channel::Stderr => known.stderr.extend(&bytes),
                    other => panic!("unexpected channel {other:?}"),
                }
                if self.grants && !bytes.is_empty() {
                    let _ = self.try_send(&ToAgent::Window { stream, bytes: bytes.len() as u32 });
                }
            }
        }
    }

    fn control(&mut self, message: FromAgent) {
        match message {
            FromAgent::Welcome { status, .. } => {
                self.welcome = Some(status.clone());
                self.status = Some(status);
            }
            FromAgent::Status { status } => {
                self.statuses.push(status.clone());
                self.status = Some(status);
            }
            FromAgent::Opened { stream } => self.on(stream, |known| known.opened = true),
            FromAgent::StreamFailed { stream, message, .. } => {
                self.on(stream, |known| known.ended = Some(Err(message)))
            }
            FromAgent::StreamEnded { stream, exit } => self.on(stream, |known| known.ended = Some(Ok(exit))),
            FromAgent::Window { stream: 0, bytes } => self.stdin_window += bytes as usize,
            FromAgent::Window { stream, bytes } => self.on(stream, |known| known.window += bytes as usize),
        }
    }

    fn on(&mut self, stream: u32, change: impl FnOnce(&mut Stream)) {
        if let Some(known) = self.streams.get_mut(&stream) {
            change(known);
        }
    }
}

pub fn shell(script: &str, stdin: bool) -> Program {
    Program {
        path: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: BTreeMap::from([("PATH".to_owned(), "/bin:/usr/bin".to_owned())]),
        cwd: None,
        extra_roots: vec![],
        work_tree: None,
        stdin,
    }
}

pub fn command(argv: &[&str]) -> Target {
    Target::Command {
        argv: argv.iter().map(|&text| text.to_owned()).collect(),
        env: BTreeMap::new(),
        cwd: None,
        stdin: false,
        tty: None,
    }
}

/// Whether a process with exactly these arguments is alive.
pub fn is_alive(arguments: &[&str]) -> bool {
    let wanted: Vec<u8> = arguments.iter().flat_map(|text| text.bytes().chain([0])).collect();
    let entries = fs::read_dir("/proc").expect("a proc filesystem");
    entries.flatten().any(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted))
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
