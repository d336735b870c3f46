//! Streams over a link: commands, TCP connections, archives, and the program's standard input.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use calve_wire::agent::{Target, ToAgent, WindowSize};
use calve_wire::frame::{CHUNK_MAX_BYTES, Channel, Frame, STREAM_WINDOW_BYTES};
use calve_wire::machine::Exit;
use tokio::sync::{Semaphore, mpsc};

use super::session::Session;
use super::{LinkError, STREAMS_MAX, lock};

/// A grant is sent when so much was taken: a quarter of the window, so that the sender never has to stop for it.
const GRANT_BYTES: usize = STREAM_WINDOW_BYTES / 4;
/// Most bytes that an agent may have granted at once; more is a broken peer.
const GRANTED_MAX_BYTES: usize = 64 * STREAM_WINDOW_BYTES;
/// The number of the program's standard input.
pub(super) const STDIN: u32 = 0;

/// What comes from a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Bytes; none where the other end closed that channel.
    Data(Channel, Bytes),
    /// It has ended, behind all of its output; a command's exit comes with it. The last event.
    Ended(Option<Exit>),
    /// It could not be opened or broke. The last event.
    Failed {
        /// Why.
        message: String,
        /// For a command, or an archive's path: the exit code with which a shell says the same.
        exit: Option<Exit>,
    },
}

impl StreamEvent {
    fn failed(message: &str) -> Self {
        Self::Failed { message: message.to_owned(), exit: None }
    }
}

/// The open streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    table: Mutex<Table>,
    stdin_window: Window,
    stdin_taken: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u32, Arc<Stream>>,
    last_number: u32,
    /// The connection has ended: nothing is opened any more.
    closed: bool,
}

/// One open stream as the connection's reader sees it.
#[derive(Debug)]
struct Stream {
    window: Window,
    /// Bounded by the window that the agent was granted.
    events: mpsc::UnboundedSender<StreamEvent>,
    /// Bytes that came and were not granted again yet.
    owed: AtomicUsize,
}

/// Bytes that the agent will still take.
#[derive(Debug)]
struct Window(Semaphore);

impl Default for Window {
    fn default() -> Self {
        Self(Semaphore::new(STREAM_WINDOW_BYTES))
    }
}

impl Window {
    fn grant(&self, bytes: u32) -> Result<(), ()> {
        if self.0.available_permits() + bytes as usize > GRANTED_MAX_BYTES {
            return Err(());
        }
        self.0.add_permits(bytes as usize);
        Ok(())
    }

    /// Waits for room and takes up to `want` bytes of it. One caller at a time.
    async fn take(&self, want: usize) -> Result<usize, LinkError> {
        self.0.acquire().await.map_err(|_| LinkError::StreamClosed)?.forget();
        let more = self.0.available_permits().min(want - 1);
        if let Ok(permits) = self.0.try_acquire_many(u32::try_from(more).unwrap_or(u32::MAX)) {
            permits.forget();
            return Ok(1 + more);
        }
        Ok(1)
    }
}

impl Streams {
    /// Bytes came. False where the agent sent more than it was granted.
    pub(super) fn data(&self, number: u32, channel: Channel, bytes: Vec<u8>) -> bool {
        let Some(stream) = lock(&self.table).open.get(&number).cloned() else {
            // It was reset a moment ago.
            return true;
        };
        let owed = stream.owed.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if owed > STREAM_WINDOW_BYTES {
            return false;
        }
        // The receiver may just have gone.
        let _ = stream.events.send(StreamEvent::Data(channel, bytes.into()));
        true
    }

    /// The agent will take more. False where that is more than makes sense.
    pub(super) fn granted(&self, number: u32, bytes: u32) -> bool {
        if number == STDIN {
            return self.stdin_window.grant(bytes).is_ok();
        }
        let stream = lock(&self.table).open.get(&number).cloned();
        stream.is_none_or(|stream| stream.window.grant(bytes).is_ok())
    }

    /// The stream's last event.
    pub(super) fn ended(&self, number: u32, event: StreamEvent) {
        if number == STDIN {
            self.stdin_window.0.close();
        } else if let Some(stream) = lock(&self.table).open.remove(&number) {
            stream.end(event);
        }
    }

    /// The connection has ended: every stream fails.
    pub(super) fn fail_all(&self, reason: &str) {
        self.stdin_window.0.close();
        let open = {
            let mut table = lock(&self.table);
            table.closed = true;
            std::mem::take(&mut table.open)
        };
        for stream in open.into_values() {
            stream.end(StreamEvent::failed(reason));
        }
    }

    fn add(&self) -> Result<(u32, Arc<Stream>, mpsc::UnboundedReceiver<StreamEvent>), LinkError> {
        let mut table = lock(&self.table);
        if table.closed {
            return Err(LinkError::Broken);
        }
        if table.open.len() >= STREAMS_MAX {
            return Err(LinkError::TooManyStreams);
        }
        let (events, events_end) = mpsc::unbounded_channel();
        let stream = Arc::new(Stream { window: Window::default(), events, owed: AtomicUsize::new(0) });
        loop {
            table.last_number = table.last_number.wrapping_add(1);
            let number = table.last_number;
            if number != STDIN
                && let Entry::Vacant(place) = table.open.entry(number)
            {
                place.insert(stream.clone());
                return Ok((number, stream, events_end));
            }
        }
    }
}

impl Stream {
    fn end(&self, event: StreamEvent) {
        self.window.0.close();
        let _ = self.events.send(event);
    }
}

/// Opens a stream on a session.
pub(super) fn open(session: &Arc<Session>, target: Target) -> Result<AgentStream, LinkError> {
    let (number, stream, events) = session.streams.add()?;
    let sender = StreamSender { session: session.clone(), number, stream: stream.clone() };
    let receiver =
        StreamReceiver { session: session.clone(), number, stream, events, taken: 0, ended: false };
    let stream = AgentStream { sender, receiver };
    // Dropped on failure, which takes it from the table again.
    session.outbox.send(&ToAgent::Open { stream: number, target })?;
    Ok(stream)
}

/// Takes the program's standard input on a session.
pub(super) fn stdin(session: &Arc<Session>) -> Result<Stdin, LinkError> {
    if session.streams.stdin_taken.swap(true, Ordering::AcqRel) {
        return Err(LinkError::StdinTaken);
    }
    Ok(Stdin { session: session.clone() })
}

/// An open stream. Dropping it resets it: the agent kills its command.
#[derive(Debug)]
pub struct AgentStream {
    sender: StreamSender,
    receiver: StreamReceiver,
}

impl AgentStream {
    /// Both directions apart, for two tasks.
    pub fn split(self) -> (StreamSender, StreamReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`StreamSender::send`].
    pub async fn send(&self, bytes: &[u8]) -> Result<(), LinkError> {
        self.sender.send(bytes).await
    }

    /// See [`StreamSender::close_stdin`].
    pub async fn close_stdin(&self) -> Result<(), LinkError> {
        self.sender.close_stdin().await
    }

    /// See [`StreamSender::signal`].
    pub fn signal(&self, signal: i32) -> Result<(), LinkError> {
        self.sender.signal(signal)
    }

    /// See [`StreamSender::resize`].
    pub fn resize(&self, size: WindowSize) -> Result<(), LinkError> {
        self.sender.resize(size)
    }

    /// See [`StreamReceiver::recv`].
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        self.receiver.recv().await
    }
}

/// The direction to the machine. Dropping it changes nothing.
#[derive(Debug)]
pub struct StreamSender {
    session: Arc<Session>,
    number: u32,
    stream: Arc<Stream>,
}

impl StreamSender {
    /// Sends bytes, as the other end takes them. Cancelled in between, some of them were sent.
    ///
    /// # Errors
    /// [`LinkError::StreamClosed`] once the stream has ended, failed or been reset; its receiver knows why.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), LinkError> {
        send(&self.session, self.number, &self.stream.window, bytes).await
    }

    /// Says that no more bytes will be sent.
    pub async fn close_stdin(&self) -> Result<(), LinkError> {
        close(&self.session, self.number, &self.stream.window).await
    }

    /// Sends a signal to the stream's command.
    pub fn signal(&self, signal: i32) -> Result<(), LinkError> {
        self.session.outbox.send(&ToAgent::StreamSignal { stream: self.number, signal })
    }

    /// Tells the stream's terminal its size.
    pub fn resize(&self, size: WindowSize) -> Result<(), LinkError> {
        self.session.outbox.send(&ToAgent::Resize { stream: self.number, size })
    }
}

/// The direction from the machine. Dropping it before the last event resets the stream.
#[derive(Debug)]
pub struct StreamReceiver {
    session: Arc<Session>,
    number: u32,
    stream: Arc<Stream>,
    events: mpsc::UnboundedReceiver<StreamEvent>,
    /// Bytes that were taken and not granted again yet.
    taken: usize,
    ended: bool,
}

impl StreamReceiver {
    /// The next event; none behind the last. May be cancelled. Taking data lets the agent send more.
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        if self.ended {
            return None;
        }
        let broken = || StreamEvent::failed(&LinkError::Broken.to_string());
        let event = self.events.recv().await.unwrap_or_else(broken);
        match &event {
            StreamEvent::Data(_, bytes) => self.grant(bytes.len()),
            StreamEvent::Ended(_) | StreamEvent::Failed { .. } => self.ended = true,
        }
        Some(event)
    }

    fn grant(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken >= GRANT_BYTES {
            self.stream.owed.fetch_sub(self.taken, Ordering::Relaxed);
            let bytes = u32::try_from(self.taken).expect("at most a window");
            self.session.outbox.send_or_break(&ToAgent::Window { stream: self.number, bytes });
            self.taken = 0;
        }
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        self.stream.window.0.close();
        let open = lock(&self.session.streams.table).open.remove(&self.number);
        if open.is_some() {
            self.session.outbox.send_or_break(&ToAgent::Reset { stream: self.number });
        }
    }
}

/// The writer of the program's standard input. Dropping it leaves the input open for the next one.
#[derive(Debug)]
pub struct Stdin {
    session: Arc<Session>,
}

impl Stdin {
    /// Sends bytes, as the program takes them.
    ///
    /// # Errors
    /// [`LinkError::StreamClosed`] once the program takes no more or the link broke.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), LinkError> {
        send(&self.session, STDIN, &self.session.streams.stdin_window, bytes).await
    }

    /// Says that no more bytes will come: the program reads the end of its input.
    pub async fn close(&self) -> Result<(), LinkError> {
        close(&self.session, STDIN, &self.session.streams.stdin_window).await
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.session.streams.stdin_taken.store(false, Ordering::Release);
    }
}

async fn send(session: &Session, number: u32, window: &Window, mut bytes: &[u8]) -> Result<(), LinkError> {
    while !bytes.is_empty() {
        let length = window.take(bytes.len().min(CHUNK_MAX_BYTES)).await?;
        let (chunk, rest) = bytes.split_at(length);
        let frame = Frame::Data { stream: number, channel: Channel::Stdin, bytes: chunk.to_vec() };
        session.outbox.send_data(frame).await?;
        bytes = rest;
    }
    Ok(())
}

async fn close(session: &Session, number: u32, window: &Window) -> Result<(), LinkError> {
    if window.0.is_closed() {
        return Err(LinkError::StreamClosed);
    }
    let frame = Frame::Data { stream: number, channel: Channel::Stdin, bytes: Vec::new() };
    session.outbox.send_data(frame).await
}
