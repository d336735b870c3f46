//! A small server's side of the agent protocol, for tests and benches of whatever has an agent: it says hello, starts
//! programs, keeps the log, and waits for what comes.
//!
//! *Invariant*: only the wire's own types are in here; a failure is a panic that says what was waited for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, Target, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, LogEntry, STREAM_WINDOW_BYTES, Token};
use calve_wire::machine::{Exit, HealthCheck, Program, Restart};

/// The token of every machine in tests.
pub const TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Longest wait for anything; a loaded host is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A lease that no test sees the end of.
pub const HOUR: Remaining = Remaining { until_deadline_ms: Some(3_600_000), grace_ms: 1000 };

/// The agent that was built beside the running test, or the one that `CALVE_AGENT` names.
pub fn agent_program() -> PathBuf {
    let own = std::env::current_exe().expect("known");
    let dir = own.parent().and_then(Path::parent).expect("tests lie in deps/");
    let program = std::env::var_os("CALVE_AGENT").map_or_else(|| dir.join("calve-agent"), PathBuf::from);
    assert!(program.exists(), "{} is missing: `cargo build -p calve-agent` makes it", program.display());
    program
}

/// Copies a program that is about to be run. A process of its own does: what another test starts meanwhile would hold a file
/// that is being written here until it runs a program itself, and until then nobody can run the copy (`ETXTBSY`, execve(2)).
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().expect("cp(1) is there");
    assert!(copied.success(), "{} is installed", from.display());
}

/// What came on one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Whether the agent has opened it.
    pub opened: bool,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Channels that the agent has closed.
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
    /// As the agent welcomed us.
    pub welcome: Option<Status>,
    /// The last one that came.
    pub status: Option<Status>,
    /// All that came behind the welcome.
    pub statuses: Vec<Status>,
    /// All that came of the log.
    pub log: Vec<LogEntry>,
    /// Streams that are open.
    pub streams: HashMap<u32, Stream>,
    /// Bytes that may still be sent to the program's standard input.
    pub stdin_window: usize,
    /// Whether log entries are acknowledged as they come.
    pub keeps: bool,
    /// Whether stream data is granted again as it comes.
    pub grants: bool,
    last_stream: u32,
}

impl Client {
    /// Connects to a socket, whose path may be longer than a socket address holds, says hello, and waits to be welcomed.
    pub fn connect(socket: &Path) -> Self {
        let mut client = Self::new(connect(socket).into());
        client.preamble();
        client.hello(0);
        client
    }

    /// The server at the end of a link, which has said nothing yet.
    pub fn new(link: OwnedFd) -> Self {
        Self {
            link: link.into(),
            decoder: Decoder::new(TOKEN.parse().expect("a token")),
            welcome: None,
            status: None,
            statuses: vec![],
            log: vec![],
            streams: HashMap::new(),
            stdin_window: STREAM_WINDOW_BYTES,
            keeps: true,
            grants: true,
            last_stream: 0,
        }
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.link.write_all(bytes).expect("the agent reads");
    }

    /// Sends the server's preamble.
    pub fn preamble(&mut self) {
        self.raw(&TOKEN.parse::<Token>().expect("a token").preamble());
    }

    /// Says hello with a log up to this number, and waits to be welcomed.
    pub fn hello(&mut self, log_seq: u64) {
        self.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq, remaining: HOUR });
        self.until(|client| client.welcome.is_some());
    }

    /// Sends a message.
    pub fn send(&mut self, message: &ToAgent) {
        self.try_send(message).expect("the agent reads");
    }

    /// Sends a message, unless the agent is gone.
    pub fn try_send(&mut self, message: &ToAgent) -> io::Result<()> {
        let mut bytes = Vec::new();
        Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
        self.link.write_all(&bytes)
    }

    /// Sends data of a stream; none are its end.
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

    /// Starts a program once.
    pub fn run(&mut self, path: &str, args: &[&str]) {
        self.start_program(program(path, args), Restart::Never, None);
    }

    /// Starts a program.
    pub fn start_program(&mut self, program: Program, restart: Restart, health: Option<HealthCheck>) {
        self.send(&ToAgent::Start { program: Some(program), restart, health });
    }

    /// Starts a script of the machine's shell.
    pub fn start(&mut self, script: &str, restart: Restart) {
        self.start_with(script, restart, None, false);
    }

    /// The same with all that belongs to it.
    pub fn start_with(&mut self, script: &str, restart: Restart, health: Option<HealthCheck>, stdin: bool) {
        self.start_program(shell(script, stdin), restart, health);
    }

    /// Opens a stream; gives its number.
    pub fn open(&mut self, target: Target) -> u32 {
        self.last_stream += 1;
        let stream = self.last_stream;
        self.streams.insert(stream, Stream { window: STREAM_WINDOW_BYTES, ..Stream::default() });
        self.send(&ToAgent::Open { stream, target });
        stream
    }

    /// Waits for the stream's last message and gives it up.
    pub fn end_of(&mut self, stream: u32) -> Stream {
        self.until(|client| client.ended(stream));
        self.streams.remove(&stream).expect("open")
    }

    /// Runs a script of the machine's shell beside the program, to its end.
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

    /// Waits for the program's first output.
    pub fn until_output(&mut self) {
        self.until(|client| !client.log.is_empty());
    }

    /// What has come of the program's output.
    pub fn output(&self, channel: Channel) -> Vec<u8> {
        let entries = self.log.iter().filter(|entry| entry.channel == channel);
        entries.flat_map(|entry| entry.bytes.iter().copied()).collect()
    }

    /// What has come of its standard output.
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

/// Connects to a socket, whose path may be longer than a socket address holds.
pub fn connect(path: &Path) -> UnixStream {
    let dir = File::open(path.parent().expect("a file")).expect("there");
    let short = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), path.file_name().expect("a file").display());
    UnixStream::connect(short).expect("the agent listens")
}

/// A program without an environment or input.
pub fn program(path: &str, args: &[&str]) -> Program {
    Program {
        path: path.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: BTreeMap::new(),
        cwd: None,
        extra_roots: vec![],
        work_tree: None,
        stdin: false,
    }
}

/// A script of the machine's shell.
pub fn shell(script: &str, stdin: bool) -> Program {
    let env = BTreeMap::from([("PATH".to_owned(), "/bin:/usr/bin".to_owned())]);
    Program { env, stdin, ..program("/bin/sh", &["-c", script]) }
}

/// A command without input or a terminal.
pub fn command(argv: &[&str]) -> Target {
    Target::Command {
        argv: argv.iter().map(|&text| text.to_owned()).collect(),
        env: BTreeMap::new(),
        cwd: None,
        stdin: false,
        tty: None,
    }
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
