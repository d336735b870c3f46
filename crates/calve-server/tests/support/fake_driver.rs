//! A driver whose machines are tasks of the test process: they outlive the server, and do what their program's arguments
//! say, one after the other:
//!
//! `out:TEXT` and `err:TEXT` are said · `back-off:N` is down after N starts · `exit:N` ends · `wait` waits for the stop · `cat` says what comes on standard
//! input until that ends. Commands in it (`exec`) say their arguments, then their input if asked for, and end with 7.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use calve_core::{DriverName, ExitCause, MachineId};
use calve_node::{Driver, DriverError, Found, Order};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, Target, ToAgent};
use calve_wire::doctor::{Check, CheckStatus};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, LogEntry, Token};
use calve_wire::machine::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// The played driver; it calls itself `sandbox`.
pub struct FakeDriver {
    run_dir: PathBuf,
    machines: Mutex<BTreeMap<MachineId, (u32, JoinHandle<()>)>>,
    /// What is missing, where something is to be.
    pub missing: Mutex<Option<String>>,
}

impl FakeDriver {
    pub fn new(run_dir: PathBuf) -> Self {
        Self { run_dir, machines: Mutex::default(), missing: Mutex::default() }
    }

    pub fn count(&self) -> usize {
        self.machines.lock().unwrap().len()
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> DriverName {
        DriverName::Sandbox
    }

    async fn preflight(&self) -> Vec<Check> {
        let missing = self.missing.lock().unwrap().clone();
        vec![Check {
            area: "sandbox".to_owned(),
            name: "played".to_owned(),
            status: if missing.is_some() { CheckStatus::Missing } else { CheckStatus::Ok },
            found: missing.unwrap_or_else(|| "all is well".to_owned()),
            cost: String::new(),
            mend: None,
        }]
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        let mut machines = self.machines.lock().unwrap();
        if machines.get(&order.id).is_none_or(|(attempt, _)| *attempt != order.attempt) {
            let socket = self.agent_socket(order.id);
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(socket).unwrap();
            let token = order.token.parse().unwrap();
            let agent = tokio::spawn(FakeAgent::new(token).run(listener));
            machines.insert(order.id, (order.attempt, agent));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let machines = self.machines.lock().unwrap();
        Ok(machines.iter().map(|(id, (attempt, _))| Found { id: *id, attempt: *attempt }).collect())
    }

    async fn set_lease(&self, _: MachineId, _: Remaining) -> Result<(), DriverError> {
        Ok(())
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        if let Some((_, agent)) = self.machines.lock().unwrap().remove(&id) {
            agent.abort();
        }
        let _ = std::fs::remove_file(self.agent_socket(id));
        Ok(())
    }

    fn agent_socket(&self, id: MachineId) -> PathBuf {
        self.run_dir.join(format!("{id}.sock"))
    }

    fn console_log(&self, _: MachineId) -> Option<PathBuf> {
        None
    }
}

struct FakeAgent {
    token: Token,
    log: Vec<LogEntry>,
    status: Status,
    script: std::vec::IntoIter<String>,
    reads_input: bool,
    /// The stream of the archive that is being written.
    archive: Option<u32>,
}

impl FakeAgent {
    fn new(token: Token) -> Self {
        let script = Vec::new().into_iter();
        Self { token, log: Vec::new(), status: Status::waiting(), script, reads_input: false, archive: None }
    }

    async fn run(mut self, listener: UnixListener) {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = self.speak(&mut connection).await;
        }
    }

    async fn speak(&mut self, connection: &mut UnixStream) -> std::io::Result<()> {
        connection.write_all(&self.token.preamble()).await?;
        let mut decoder = Decoder::new(self.token.clone());
        let mut buffer = vec![0; 64 * 1024];
        loop {
            while let Some(incoming) = decoder.next().unwrap() {
                match incoming {
                    Incoming::Frame(Frame::Control(json)) => {
                        let message = serde_json::from_slice(&json).unwrap();
                        self.heard(connection, message).await?;
                    }
                    Incoming::Frame(Frame::Data { stream, bytes, .. }) => {
                        self.data(connection, stream, bytes).await?;
                    }
                    _ => {}
                }
            }
            let length = connection.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            decoder.push(&buffer[..length]);
        }
    }

    async fn heard(&mut self, connection: &mut UnixStream, message: ToAgent) -> std::io::Result<()> {
        match message {
            ToAgent::Hello { log_seq, .. } => {
                let status = self.status.clone();
                let (version, agent) = (AGENT_PROTOCOL_VERSION, "played".to_owned());
                say(connection, FromAgent::Welcome { version, agent, status }).await?;
                for entry in self.log.iter().filter(|entry| entry.seq > log_seq) {
                    send(connection, Frame::Log(entry.clone())).await?;
                }
                Ok(())
            }
            ToAgent::Start { program, .. } if self.status.phase == Phase::Waiting => {
                self.script = program.map(|program| program.args).unwrap_or_default().into_iter();
                self.status.starts = 1;
                self.phase(connection, Phase::Running).await?;
                self.play(connection).await
            }
            ToAgent::Stop { .. } if self.status.phase == Phase::Running => {
                self.end(connection, None, Some(15)).await
            }
            ToAgent::Signal { signal } if self.status.phase == Phase::Running => {
                self.end(connection, None, Some(signal)).await
            }
            ToAgent::Open { stream, target } => self.open(connection, stream, target).await,
            _ => Ok(()),
        }
    }

    async fn play(&mut self, connection: &mut UnixStream) -> std::io::Result<()> {
        while let Some(step) = self.script.next() {
            match step.split_once(':').unwrap_or((&step, "")) {
                ("out", text) => self.output(connection, Channel::Stdout, text.as_bytes()).await?,
                ("err", text) => self.output(connection, Channel::Stderr, text.as_bytes()).await?,
                ("exit", code) => return self.end(connection, code.parse().ok(), None).await,
                ("back-off", starts) => {
                    self.status.starts = starts.parse().unwrap();
                    self.phase(connection, Phase::BackingOff).await?;
                }
                ("cat", _) => {
                    self.reads_input = true;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
        self.end(connection, Some(0), None).await
    }

    async fn data(
        &mut self,
        connection: &mut UnixStream,
        stream: u32,
        bytes: Vec<u8>,
    ) -> std::io::Result<()> {
        if stream != 0 {
            let ended = bytes.is_empty();
            let granted = FromAgent::Window { stream, bytes: u32::try_from(bytes.len()).unwrap() };
            say(connection, granted).await?;
            // An archive is taken in silence; everything else comes back.
            if self.archive != Some(stream) {
                send(connection, Frame::Data { stream, channel: Channel::Stdout, bytes }).await?;
            }
            return if ended { finish(connection, stream, Some(7)).await } else { Ok(()) };
        }
        if self.reads_input && bytes.is_empty() {
            self.reads_input = false;
            return self.play(connection).await;
        }
        self.output(connection, Channel::Stdout, &bytes).await
    }

    async fn open(
        &mut self,
        connection: &mut UnixStream,
        stream: u32,
        target: Target,
    ) -> std::io::Result<()> {
        say(connection, FromAgent::Opened { stream }).await?;
        let data = |bytes: &[u8]| Frame::Data { stream, channel: Channel::Stdout, bytes: bytes.to_vec() };
        match target {
            Target::Command { argv, stdin, .. } => {
                send(connection, data(argv.join(" ").as_bytes())).await?;
                if stdin { Ok(()) } else { finish(connection, stream, Some(7)).await }
            }
            Target::Tcp { port } => send(connection, data(format!("port {port}: ").as_bytes())).await,
            Target::Read { path } if path == "/missing" => {
                let message = format!("there is no {path} in the machine");
                say(connection, FromAgent::StreamFailed { stream, message, exit: None }).await
            }
            Target::Read { path } => {
                send(connection, data(path.as_bytes())).await?;
                finish(connection, stream, None).await
            }
            Target::Write { .. } | Target::Seed { .. } => {
                self.archive = Some(stream);
                Ok(())
            }
        }
    }

    async fn output(
        &mut self,
        connection: &mut UnixStream,
        channel: Channel,
        bytes: &[u8],
    ) -> std::io::Result<()> {
        let seq = self.log.len() as u64 + 1;
        let entry = LogEntry { seq, time_unix_ms: 1000 * seq, channel, bytes: bytes.to_vec() };
        self.log.push(entry.clone());
        self.status.log_seq = seq;
        send(connection, Frame::Log(entry)).await
    }

    async fn end(
        &mut self,
        connection: &mut UnixStream,
        code: Option<i32>,
        signal: Option<i32>,
    ) -> std::io::Result<()> {
        self.status.last_exit = Some(Exit { code, signal, cause: ExitCause::Normal });
        self.phase(connection, Phase::Ended).await
    }

    async fn phase(&mut self, connection: &mut UnixStream, phase: Phase) -> std::io::Result<()> {
        self.status.phase = phase;
        say(connection, FromAgent::Status { status: self.status.clone() }).await
    }
}

async fn finish(connection: &mut UnixStream, stream: u32, code: Option<i32>) -> std::io::Result<()> {
    let exit = code.map(|code| Exit { code: Some(code), signal: None, cause: ExitCause::Normal });
    say(connection, FromAgent::StreamEnded { stream, exit }).await
}

async fn say(connection: &mut UnixStream, message: FromAgent) -> std::io::Result<()> {
    send(connection, Frame::Control(serde_json::to_vec(&message).unwrap())).await
}

async fn send(connection: &mut UnixStream, frame: Frame) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    connection.write_all(&bytes).await
}
