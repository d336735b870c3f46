//! One connection to an agent, from the preambles to its end.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Remaining, Status, ToAgent};
use calve_wire::frame::{Decoder, Frame, FrameError, Incoming, LogEntry};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::link::Link;
use super::outbox::{self, Outbox};
use super::streams::{StreamEvent, Streams};
use crate::logs::LogError;

/// Read at once. The buffer belongs to the thread, so that idle links hold none.
const READ_BYTES: usize = 64 * 1024;
/// An agent that has sent bytes must have said `Welcome` by then. A silent one is waited for: a guest in emulation boots
/// for a minute, and nothing is lost by waiting.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// Deadlines that are this close are the same: two clocks were read for them.
const LEASE_TOLD_MS: u64 = 100;
/// Pause before a log that could not be written is tried again.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// What other tasks see of a connection whose agent has said `Welcome`.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) outbox: Outbox,
    pub(super) streams: Streams,
    /// Ends it, so that another one begins.
    pub(super) left: Notify,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error("the agent has closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the agent sent what is no frame")]
    Frame(#[from] FrameError),
    #[error("the agent sent a message that this server does not know")]
    Message(#[from] serde_json::Error),
    #[error("the agent sent {0} before its welcome")]
    NotWelcomed(&'static str),
    #[error("the agent answered without knowing the machine's token or without a welcome")]
    Silent,
    #[error("the agent speaks version {0} of the protocol, this server {AGENT_PROTOCOL_VERSION}")]
    Version(u32),
    #[error("the agent has begun anew")]
    Restarted,
    #[error("the log can be kept again; asking for what was missed")]
    LogResumed,
    #[error("the log does not go on where it ended")]
    Log(#[source] LogError),
    #[error("the agent sent more on stream {0} than it was granted, or grants that make no sense")]
    Window(u32),
    #[error("the agent does not read what it is sent")]
    Overflow,
}

impl SessionEnd {
    /// Whether that is how links end; anything else is the agent's fault, and a pause that grows keeps it from
    /// keeping this server busy.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(self, Self::Closed | Self::Io(_) | Self::LogResumed)
    }
}

/// Speaks with an agent until the connection ends. `begun` are bytes that were read from it already. Tells also whether
/// the agent was heard.
pub(super) async fn run<C>(link: &Arc<Link>, connection: C, begun: &[u8]) -> (SessionEnd, bool)
where
    C: AsyncRead + AsyncWrite,
{
    let kept_seq = match link.logs.last_seq_async(link.id).await {
        Ok(kept_seq) => kept_seq,
        Err(error) => {
            link.note_log(Some(&error));
            return (SessionEnd::Log(error), false);
        }
    };
    let (reader, mut writer) = tokio::io::split(connection);
    let remaining = (link.remaining)();
    let told = Told { remaining, at: Instant::now() };
    if let Err(error) = greet(link, &mut writer, kept_seq, remaining).await {
        return (error.into(), false);
    }
    let (outbox, outgoing) = Outbox::new();
    let session = Arc::new(Session { outbox, streams: Streams::default(), left: Notify::new() });
    let mut decoder = Decoder::new(link.token.clone());
    decoder.push(begun);
    let stage = Stage::Greeting;
    link.log_kept(kept_seq);
    let log = Vec::new();
    let mut reading =
        Reading { link, session: &session, decoder, stage, told, log, kept_seq, resumed: false };
    let _closing = Closing { link, session: &session };
    let end = tokio::select! {
        end = reading.read_all(reader) => end,
        result = outgoing.send_all(writer) => result.map_or_else(SessionEnd::Io, |()| SessionEnd::Closed),
        () = session.outbox.overflowed() => SessionEnd::Overflow,
        () = session.left.notified() => SessionEnd::Closed,
    };
    (end, reading.stage == Stage::Linked)
}

async fn greet(
    link: &Link,
    writer: &mut (impl AsyncWrite + Unpin),
    log_seq: u64,
    remaining: Remaining,
) -> io::Result<()> {
    let mut bytes = link.token.preamble().to_vec();
    outbox::encode(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq, remaining }, &mut bytes);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

/// Tidies up however a session ends, also where its task is dropped.
struct Closing<'a> {
    link: &'a Arc<Link>,
    session: &'a Arc<Session>,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.link.session_ended();
        self.session.streams.fail_all("the link to the machine's agent broke");
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No `Welcome` yet.
    Greeting,
    /// The agent is heard.
    Linked,
}

/// The direction from the agent.
struct Reading<'a> {
    link: &'a Arc<Link>,
    session: &'a Arc<Session>,
    decoder: Decoder,
    stage: Stage,
    told: Told,
    /// Entries that came and are not written yet.
    log: Vec<LogEntry>,
    /// The last kept entry.
    kept_seq: u64,
    /// Whether the log has gone on on this connection.
    resumed: bool,
}

/// The lease that an agent was told in the hello.
struct Told {
    remaining: Remaining,
    at: Instant,
}

impl Told {
    /// Whether the lease is another one now.
    fn differs(&self, now: Remaining) -> bool {
        let passed_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let left_ms = self.remaining.until_deadline_ms.map(|until| until.saturating_sub(passed_ms));
        let same = match (left_ms, now.until_deadline_ms) {
            (Some(told), Some(now)) => told.abs_diff(now) < LEASE_TOLD_MS,
            (None, None) => true,
            _ => false,
        };
        !same || self.remaining.grace_ms != now.grace_ms
    }
}

/// A log that cannot be written at the moment: the entries to try again with. What comes meanwhile is dropped and asked
/// for again, as it was not acknowledged.
struct Stalled {
    entries: Vec<LogEntry>,
    retry_at: Instant,
}

impl Reading<'_> {
    async fn read_all(&mut self, mut reader: impl AsyncRead + Unpin) -> SessionEnd {
        let mut stalled: Option<Stalled> = None;
        let mut welcome_by = None;
        loop {
            if let Err(end) = self.take_frames(&mut stalled).await {
                return end;
            }
            let deadline = match (&stalled, self.stage, welcome_by) {
                (Some(stalled), ..) => Some(stalled.retry_at),
                (None, Stage::Greeting, welcome_by) => welcome_by,
                (None, Stage::Linked, _) => None,
            };
            let filled = tokio::select! {
                filled = std::future::poll_fn(|cx| poll_fill(Pin::new(&mut reader), cx, &mut self.decoder)) => Some(filled),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => None,
            };
            match filled {
                Some(Ok(0)) => return SessionEnd::Closed,
                Some(Ok(_)) => {
                    welcome_by.get_or_insert_with(|| Instant::now() + WELCOME_DEADLINE);
                }
                Some(Err(error)) => return error.into(),
                None => match stalled.take() {
                    None => return SessionEnd::Silent,
                    Some(old) => {
                        self.log = old.entries;
                        stalled = match self.keep_log().await {
                            Ok(None) => return SessionEnd::LogResumed,
                            Ok(still) => still,
                            Err(end) => return end,
                        };
                    }
                },
            }
        }
    }

    /// Handles every whole frame that is there.
    async fn take_frames(&mut self, stalled: &mut Option<Stalled>) -> Result<(), SessionEnd> {
        while let Some(incoming) = self.decoder.next()? {
            match incoming {
                Incoming::Connected if self.stage == Stage::Linked => return Err(SessionEnd::Restarted),
                // An agent may have answered a former connection as well; the last preamble counts.
                Incoming::Connected => {}
                Incoming::Frame(Frame::Control(json)) => {
                    // What is said behind output is heard behind it.
                    self.flush_log(stalled).await?;
                    self.control(serde_json::from_slice(&json)?)?;
                }
                Incoming::Frame(_) if self.stage == Stage::Greeting => {
                    return Err(SessionEnd::NotWelcomed("data"));
                }
                Incoming::Frame(Frame::Log(entry)) if stalled.is_none() => {
                    self.resume_log(entry.seq)?;
                    self.log.push(entry);
                }
                Incoming::Frame(Frame::Log(_)) => {}
                Incoming::Frame(Frame::Data { stream, channel, bytes }) => {
                    if !self.session.streams.data(stream, channel, bytes) {
                        return Err(SessionEnd::Window(stream));
                    }
                }
            }
        }
        self.flush_log(stalled).await
    }

    /// The first entry of a connection may lie ahead of what was kept: the log was lost here after it was acknowledged,
    /// so the agent has it no more, and asking for it again would never end.
    fn resume_log(&mut self, seq: u64) -> Result<(), SessionEnd> {
        if !self.resumed && seq > self.kept_seq + 1 {
            tracing::warn!(machine = %self.link.id, "log entries {} to {} are lost", self.kept_seq + 1, seq - 1);
            self.link.logs.skip_to(self.link.id, seq).map_err(SessionEnd::Log)?;
        }
        self.resumed = true;
        Ok(())
    }

    async fn flush_log(&mut self, stalled: &mut Option<Stalled>) -> Result<(), SessionEnd> {
        if stalled.is_none() && !self.log.is_empty() {
            *stalled = self.keep_log().await?;
        }
        Ok(())
    }

    /// Writes the entries that came and acknowledges them; gives them back where they cannot be written at the moment.
    async fn keep_log(&mut self) -> Result<Option<Stalled>, SessionEnd> {
        let entries = std::mem::take(&mut self.log);
        match self.link.logs.append_async(self.link.id, entries).await {
            Ok(kept_seq) => {
                self.link.note_log(None);
                self.link.log_kept(kept_seq);
                self.kept_seq = kept_seq;
                self.session.outbox.log_kept(kept_seq);
                Ok(None)
            }
            Err((error @ (LogError::Gap { .. } | LogError::Removed), _)) => Err(SessionEnd::Log(error)),
            Err((error @ (LogError::Full { .. } | LogError::Io { .. }), entries)) => {
                self.link.note_log(Some(&error));
                Ok(Some(Stalled { entries, retry_at: Instant::now() + LOG_RETRY }))
            }
        }
    }

    fn control(&mut self, message: FromAgent) -> Result<(), SessionEnd> {
        match (message, self.stage) {
            (FromAgent::Welcome { version, agent, status }, _) => {
                self.welcome(version, &agent, status)?;
            }
            (_, Stage::Greeting) => return Err(SessionEnd::NotWelcomed("a message")),
            (FromAgent::Status { status }, Stage::Linked) => self.link.heard(status),
            (FromAgent::Opened { .. }, Stage::Linked) => {}
            (FromAgent::StreamFailed { stream, message, exit }, Stage::Linked) => {
                self.session.streams.ended(stream, StreamEvent::Failed { message, exit });
            }
            (FromAgent::StreamEnded { stream, exit }, Stage::Linked) => {
                self.session.streams.ended(stream, StreamEvent::Ended(exit));
            }
            (FromAgent::Window { stream, bytes }, Stage::Linked) => {
                if !self.session.streams.granted(stream, bytes) {
                    return Err(SessionEnd::Window(stream));
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, version: u32, agent: &str, status: Status) -> Result<(), SessionEnd> {
        if version != AGENT_PROTOCOL_VERSION {
            return Err(SessionEnd::Version(version));
        }
        tracing::debug!(machine = %self.link.id, agent, "linked");
        self.stage = Stage::Linked;
        self.link.session_began(self.session.clone(), status);
        // Whoever changed the lease since the hello found no session to tell it.
        let remaining = (self.link.remaining)();
        if self.told.differs(remaining) {
            self.session.outbox.send_or_break(&ToAgent::Lease { remaining });
        }
        Ok(())
    }
}

/// Reads once, by way of a buffer that all connections of the thread share.
fn poll_fill(
    reader: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    decoder: &mut Decoder,
) -> Poll<io::Result<usize>> {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(reader.poll_read(cx, &mut read))?;
        decoder.push(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}
