//! The other end of a link, played by a test, frame by frame.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod door;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_server::agents::Agents;
use calve_server::logs::{LogOptions, Logs, Query};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, LogEntry, Token};
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// The token of every test machine.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A server's links and logs in a directory of their own.
pub struct World {
    pub dir: tempfile::TempDir,
    pub logs: Arc<Logs>,
    pub bell: Arc<Notify>,
    pub agents: Arc<Agents>,
}

impl World {
    pub fn new() -> Self {
        Self::with_options(LogOptions::default())
    }

    pub fn with_options(options: LogOptions) -> Self {
        Self::at(tempfile::tempdir().unwrap(), options)
    }

    /// Begins with what a former server left in a directory.
    pub fn at(dir: tempfile::TempDir, options: LogOptions) -> Self {
        let logs = Arc::new(Logs::open(dir.path().join("logs"), options));
        let bell = Arc::new(Notify::new());
        let agents = Agents::new(logs.clone(), bell.clone());
        Self { dir, logs, bell, agents }
    }

    /// Lets go of everything but the directory, and waits until no write is under way: within one process it would go on.
    pub async fn die(self) -> tempfile::TempDir {
        let Self { dir, logs, bell, agents } = self;
        drop((bell, agents));
        while Arc::strong_count(&logs) > 1 {
            tokio::task::yield_now().await;
        }
        dir
    }

    /// Links a machine to a socket on which a test plays the agent.
    pub fn link(&self, id: MachineId) -> FakeAgent {
        let path = self.dir.path().join(format!("{id}.sock"));
        let agent = FakeAgent::listen(&path);
        self.agents.link(id, path, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
        agent
    }

    /// Waits until the condition holds, which is looked at whenever a report changes.
    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                // A changed log rings no bell: look again soon as well.
                let _ = tokio::time::timeout(Duration::from_millis(5), self.bell.notified()).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited too long for {what}"));
    }

    pub async fn until_linked(&self, id: MachineId) {
        self.until("the link", || self.agents.reports().get(&id).is_some_and(|report| report.linked)).await;
    }

    pub async fn log(&self, id: MachineId) -> Vec<LogEntry> {
        self.logs.read(id, Query::default()).await.unwrap().collect().await
    }
}

pub fn remaining() -> Remaining {
    Remaining { until_deadline_ms: Some(60_000), grace_ms: 1000 }
}

pub fn machine(n: u64) -> MachineId {
    MachineId::new(Timestamp(n), 7)
}

pub fn entry(seq: u64, bytes: &[u8]) -> LogEntry {
    LogEntry { seq, time_unix_ms: 1000 + seq, channel: Channel::Stdout, bytes: bytes.to_vec() }
}

pub fn status(phase: Phase, log_seq: u64) -> Status {
    Status { phase, starts: 1, log_seq, ..Status::waiting() }
}

/// Listens where the server connects.
pub struct FakeAgent {
    pub path: PathBuf,
    listener: UnixListener,
}

impl FakeAgent {
    pub fn listen(path: &Path) -> Self {
        Self { path: path.to_owned(), listener: UnixListener::bind(path).unwrap() }
    }

    pub async fn accept(&self) -> Conversation<UnixStream> {
        let accepted = tokio::time::timeout(DEADLINE, self.listener.accept()).await;
        Conversation::new(accepted.expect("the server connects").unwrap().0)
    }

    /// Accepts and greets; gives what the server has kept of the log, too.
    pub async fn accept_linked(&self, log_seq: u64) -> (Conversation<UnixStream>, u64) {
        let mut conversation = self.accept().await;
        let kept = conversation.greet(log_seq).await;
        (conversation, kept)
    }
}

/// One connection, the agent's side.
pub struct Conversation<C> {
    pub connection: C,
    decoder: Decoder,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Conversation<C> {
    pub fn new(connection: C) -> Self {
        Self { connection, decoder: Decoder::new(token()) }
    }

    /// What the server sends next; none where it hung up.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            if let Some(incoming) = self.decoder.next().unwrap() {
                return Some(incoming);
            }
            let mut buffer = vec![0; 64 * 1024];
            let read = tokio::time::timeout(DEADLINE, self.connection.read(&mut buffer)).await;
            match read.expect("the server says something") {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.decoder.push(&buffer[..length]),
            }
        }
    }

    /// The next control message that is no `LogKept`.
    pub async fn message(&mut self) -> ToAgent {
        loop {
            match self.next().await.expect("the server hung up") {
                Incoming::Frame(Frame::Control(json)) => match serde_json::from_slice(&json).unwrap() {
                    ToAgent::LogKept { .. } => {}
                    message => return message,
                },
                other => panic!("a message was expected, not {other:?}"),
            }
        }
    }

    /// Reads until the server has hung up.
    pub async fn hung_up(&mut self) {
        while self.next().await.is_some() {}
    }

    /// Reads the server's preamble and hello: what it has kept of the log.
    pub async fn hello(&mut self) -> u64 {
        assert_eq!(self.next().await, Some(Incoming::Connected));
        match self.message().await {
            ToAgent::Hello { version, log_seq, remaining: said } => {
                assert_eq!((version, said), (AGENT_PROTOCOL_VERSION, remaining()));
                log_seq
            }
            other => panic!("not a hello: {other:?}"),
        }
    }

    /// Greets as an agent does whose log has come to `log_seq`.
    pub async fn greet(&mut self, log_seq: u64) -> u64 {
        let kept = self.hello().await;
        self.raw(&token().preamble()).await;
        self.welcome(log_seq).await;
        kept
    }

    pub async fn welcome(&mut self, log_seq: u64) {
        let status = status(Phase::Running, log_seq);
        self.say(FromAgent::Welcome { version: AGENT_PROTOCOL_VERSION, agent: "fake".into(), status }).await;
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        // The server may have hung up, which a test sees otherwise.
        let _ = self.connection.write_all(bytes).await;
        let _ = self.connection.flush().await;
    }

    pub async fn frame(&mut self, frame: Frame) {
        self.raw(&encoded(&frame)).await;
    }

    pub async fn say(&mut self, message: FromAgent) {
        self.frame(Frame::Control(serde_json::to_vec(&message).unwrap())).await;
    }

    pub async fn log(&mut self, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            self.frame(Frame::Log(entry(seq, b"line\n"))).await;
        }
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.frame(Frame::Data { stream, channel: Channel::Stdout, bytes: bytes.to_vec() }).await;
    }

    /// Waits until the server has acknowledged the log up to `seq`.
    pub async fn kept(&mut self, seq: u64) {
        loop {
            if let Incoming::Frame(Frame::Control(json)) = self.next().await.expect("the server hung up")
                && let ToAgent::LogKept { seq: kept } = serde_json::from_slice(&json).unwrap()
                && kept >= seq
            {
                assert_eq!(kept, seq);
                return;
            }
        }
    }
}

pub fn token() -> Token {
    TOKEN.parse().unwrap()
}

pub fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}
