//! One connection with the server: bytes to messages, messages to the parts of the agent, and back.

use std::io;
use std::rc::Rc;

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, FrameError, Incoming, STREAM_WINDOW_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Agent, Event};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Whether the agent's preamble is on its way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// It is the answer to the server's.
    Unsent,
    /// It came first.
    Sent,
}

/// Why a connection is closed by the agent.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The transport failed or was closed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A control frame is no message of this protocol.
    #[error("a control message does not parse")]
    Message(#[from] serde_json::Error),
    /// The server does what the protocol forbids.
    #[error("the server {0}")]
    Forbidden(&'static str),
}

/// Reads until the decoder has seen the right preamble.
pub async fn await_preamble(
    reader: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<(), Broken> {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        // What comes before the preamble is no frame of anybody.
        if let Some(Incoming::Connected) = decoder.next()? {
            return Ok(());
        }
        let count = reader.read(&mut bytes).await?;
        if count == 0 {
            return Err(Broken::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        decoder.push(&bytes[..count]);
    }
}

/// Serves a connection whose preamble has come, until it ends. What belonged to it ends with it.
pub async fn serve(
    agent: &Rc<Agent>,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    decoder: &mut Decoder,
    preamble: Preamble,
) -> Broken {
    let ending = EndsConnection(agent);
    let mut session = Session::begin(agent, preamble);
    let reading = async {
        let mut bytes = vec![0; READ_BYTES];
        loop {
            while let Some(incoming) = decoder.next()? {
                match incoming {
                    Incoming::Connected => session = Session::begin(agent, Preamble::Unsent),
                    Incoming::Frame(frame) => session.take(frame)?,
                }
            }
            let count = reader.read(&mut bytes).await?;
            if count == 0 {
                return Err::<(), Broken>(Broken::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            decoder.push(&bytes[..count]);
        }
    };
    let writing = async {
        loop {
            let batch = agent.outbox.take(&agent.log.spool.borrow());
            if batch.is_empty() {
                agent.outbox.ready.notified().await;
                continue;
            }
            writer.write_all(&batch).await?;
            writer.flush().await?;
        }
    };
    let ended: Result<(), Broken> = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    drop(ending);
    ended.err().unwrap_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
}

/// Ends what belongs to the connection, also where its task is dropped because a new one has come.
struct EndsConnection<'a>(&'a Agent);

impl Drop for EndsConnection<'_> {
    fn drop(&mut self) {
        self.0.streams.borrow_mut().clear();
        self.0.outbox.begin(&[]);
    }
}

/// What the agent remembers of one connection.
struct Session<'a> {
    agent: &'a Rc<Agent>,
    greeted: bool,
    /// A server of another protocol: it was told so and is not listened to.
    refused: bool,
    /// Bytes of the program's standard input that the server may still send.
    stdin_window: usize,
}

impl<'a> Session<'a> {
    fn begin(agent: &'a Rc<Agent>, preamble: Preamble) -> Self {
        agent.streams.borrow_mut().clear();
        match preamble {
            Preamble::Unsent => agent.outbox.begin(&agent.token.borrow().preamble()),
            Preamble::Sent => agent.outbox.begin(&[]),
        }
        agent.stdin.new_connection();
        Self { agent, greeted: false, refused: false, stdin_window: STREAM_WINDOW_BYTES }
    }

    fn take(&mut self, frame: Frame) -> Result<(), Broken> {
        if self.refused {
            return Ok(());
        }
        match frame {
            Frame::Control(json) => self.control(serde_json::from_slice(&json)?),
            Frame::Data { .. } if !self.greeted => Err(Broken::Forbidden("sent data before its hello")),
            Frame::Data { stream: 0, channel: Channel::Stdin, bytes } => self.program_input(bytes),
            Frame::Data { stream, channel: Channel::Stdin, bytes } => {
                if self.agent.streams.borrow_mut().data(stream, bytes) {
                    return Ok(());
                }
                self.agent.streams.borrow_mut().reset(stream);
                let message = "more was sent than the window allows".to_owned();
                self.agent.outbox.send(&FromAgent::StreamFailed { stream, message, exit: None });
                Ok(())
            }
            Frame::Data { .. } | Frame::Log(_) => Err(Broken::Forbidden("sent what only an agent sends")),
        }
    }

    fn program_input(&mut self, bytes: Vec<u8>) -> Result<(), Broken> {
        // Granted again as it is used, see `stdin.rs`; counted there, as a grant belongs to a connection.
        let granted = self.agent.stdin.take_granted();
        self.stdin_window += granted;
        self.stdin_window = self
            .stdin_window
            .checked_sub(bytes.len())
            .ok_or(Broken::Forbidden("sent more standard input than its window allows"))?;
        if self.agent.stdin.add(bytes, self.agent.outbox.generation()) {
            return Ok(());
        }
        Err(Broken::Forbidden("sent more standard input than can wait for the program"))
    }

    fn control(&mut self, message: ToAgent) -> Result<(), Broken> {
        let agent = self.agent;
        if let ToAgent::Hello { version, log_seq, remaining } = message {
            return self.hello(version, log_seq, remaining);
        }
        if !self.greeted {
            return Err(Broken::Forbidden("did not begin with its hello"));
        }
        match message {
            ToAgent::Hello { .. } => {}
            ToAgent::Start { program, restart, health } => {
                agent.tell(Event::Start { program, restart, health })
            }
            ToAgent::Lease { remaining } => agent.tell(Event::Lease(remaining)),
            ToAgent::Stop { grace_ms } => agent.tell(Event::Stop { grace_ms }),
            ToAgent::Signal { signal } => agent.tell(Event::Signal(signal)),
            ToAgent::LogKept { seq } => agent.log.kept(seq),
            ToAgent::Open { stream, target } => super::streams::open(agent, stream, target),
            ToAgent::Window { stream, bytes } => agent.streams.borrow().window(stream, bytes),
            ToAgent::StreamSignal { stream, signal } => agent.streams.borrow().signal(stream, signal),
            ToAgent::Resize { stream, size } => agent.streams.borrow().resize(stream, size),
            ToAgent::Reset { stream } => agent.streams.borrow_mut().reset(stream),
            ToAgent::PowerOff => agent.tell(Event::PowerOff),
        }
        Ok(())
    }

    fn hello(
        &mut self,
        version: u32,
        log_seq: u64,
        remaining: calve_wire::agent::Remaining,
    ) -> Result<(), Broken> {
        if self.greeted {
            return Err(Broken::Forbidden("said hello twice"));
        }
        let agent = self.agent;
        self.greeted = true;
        self.refused = version != AGENT_PROTOCOL_VERSION;
        if !self.refused {
            agent.log.resume(log_seq);
            agent.tell(Event::Lease(remaining));
        }
        if let Some(log_sent) = agent.welcomed.take() {
            agent.outbox.resume(log_sent);
            // What has happened since the welcome.
            agent.outbox.send(&FromAgent::Status { status: agent.status() });
            return Ok(());
        }
        let welcome = FromAgent::Welcome {
            version: AGENT_PROTOCOL_VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            status: agent.status(),
        };
        // One that is refused gets no log: it could not say what it has kept.
        agent.outbox.greet(&welcome, if self.refused { u64::MAX } else { log_seq });
        Ok(())
    }
}
