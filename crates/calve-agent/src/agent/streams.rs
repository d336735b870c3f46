//! Streams of the present connection: commands, ports, archives. All of them end with the connection.

mod command;
pub mod files;
mod port;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use calve_wire::agent::{FromAgent, Target, WindowSize};
use calve_wire::frame::{CHUNK_MAX_BYTES, Channel, STREAM_WINDOW_BYTES};
use calve_wire::machine::{Exit, ExitCause};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use super::Agent;
use super::pipe::Pipe;
use crate::init::packet::NotStarted;

pub use command::{exit, work as command_work};
pub use port::connect;

/// Most streams at once: a bound for memory, far above what people open.
const STREAMS_MAX: usize = 4096;

/// The open streams.
#[derive(Default)]
pub struct Streams(HashMap<u32, Handle>);

/// What the connection holds of a stream. Its task is dropped with it, and what the task holds: its command is killed.
struct Handle {
    task: AbortHandle,
    input: mpsc::UnboundedSender<Vec<u8>>,
    orders: mpsc::UnboundedSender<Order>,
    windows: Rc<Windows>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the server wants of a stream beside data.
#[derive(Debug, Clone, Copy)]
enum Order {
    Signal(i32),
    Resize(WindowSize),
}

/// Both directions' flow control.
struct Windows {
    /// Bytes that may still be sent to the server.
    outgoing: Cell<u64>,
    opened: Notify,
    /// Bytes that the server may still send.
    incoming: Cell<usize>,
}

impl Streams {
    /// Ends all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Ends one; unknown ones have ended already.
    pub fn reset(&mut self, stream: u32) {
        self.0.remove(&stream);
    }

    /// Input for a stream; none closes it. False where it is more than was granted.
    pub fn data(&mut self, stream: u32, bytes: Vec<u8>) -> bool {
        let Some(handle) = self.0.get(&stream) else { return true };
        let Some(left) = handle.windows.incoming.get().checked_sub(bytes.len()) else { return false };
        handle.windows.incoming.set(left);
        // A stream that takes no more input is about to end.
        let _ = handle.input.send(bytes);
        true
    }

    /// The server has room for further bytes.
    pub fn window(&self, stream: u32, bytes: u32) {
        if let Some(Handle { windows, .. }) = self.0.get(&stream) {
            windows.outgoing.set(windows.outgoing.get().saturating_add(bytes.into()));
            windows.opened.notify_waiters();
        }
    }

    /// A signal for a stream's command.
    pub fn signal(&self, stream: u32, signal: i32) {
        self.order(stream, Order::Signal(signal));
    }

    /// A new size for a stream's terminal.
    pub fn resize(&self, stream: u32, size: WindowSize) {
        self.order(stream, Order::Resize(size));
    }

    fn order(&self, stream: u32, order: Order) {
        if let Some(handle) = self.0.get(&stream) {
            let _ = handle.orders.send(order);
        }
    }
}

/// Opens a stream as the server asks.
pub fn open(agent: &Rc<Agent>, stream: u32, target: Target) {
    let refuse = |message: &str| {
        agent.outbox.send(&FromAgent::StreamFailed { stream, message: message.to_owned(), exit: None });
    };
    let mut streams = agent.streams.borrow_mut();
    if stream == 0 || streams.0.contains_key(&stream) {
        return refuse("the stream's number is taken");
    }
    if streams.0.len() >= STREAMS_MAX {
        return refuse("too many streams are open in this machine: close some and try again");
    }
    // What was left behind may still be copied out of a machine that has ended; nothing may come alive in it.
    if !agent.takes_commands.get() && !matches!(target, Target::Read { .. }) {
        return refuse("the machine's workload has ended");
    }
    let windows = Rc::new(Windows {
        outgoing: Cell::new(STREAM_WINDOW_BYTES as u64),
        opened: Notify::new(),
        incoming: Cell::new(STREAM_WINDOW_BYTES),
    });
    let (input, inputs) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::unbounded_channel();
    let stream_end = Stream { agent: agent.clone(), stream, windows: windows.clone() };
    let task = tokio::task::spawn_local(serve(stream_end, target, inputs, ordered)).abort_handle();
    streams.0.insert(stream, Handle { task, input, orders, windows });
}

async fn serve(
    stream: Stream,
    target: Target,
    inputs: mpsc::UnboundedReceiver<Vec<u8>>,
    orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut inputs = Inputs { stream: stream.clone(), received: inputs };
    let ended = match target {
        Target::Command { argv, env, cwd, stdin, tty } => {
            let wanted = command::Command { argv, env, cwd, stdin, tty };
            command::serve(&stream, wanted, &mut inputs, orders).await.map(Some)
        }
        Target::Tcp { port } => {
            port::serve(&stream, port, &mut inputs).await.map(|()| None).map_err(NotStarted::from)
        }
        Target::Read { path } => files::read(&stream, path).await.map(|()| None),
        Target::Write { path } => files::write(&stream, path, &mut inputs).await.map(|()| None),
        Target::Seed { path } => files::seed(&stream, path, &mut inputs).await.map(|()| None),
    };
    stream.end(ended);
}

/// The agent's end of one stream.
#[derive(Clone)]
pub struct Stream {
    agent: Rc<Agent>,
    stream: u32,
    windows: Rc<Windows>,
}

impl Stream {
    /// Tells that it is open.
    fn opened(&self) {
        self.agent.outbox.send(&FromAgent::Opened { stream: self.stream });
    }

    /// The last message; the number is free again.
    fn end(&self, ended: Result<Option<Exit>, NotStarted>) {
        let stream = self.stream;
        self.agent.outbox.send(&match ended {
            Ok(exit) => FromAgent::StreamEnded { stream, exit },
            Err(NotStarted { message, code }) => {
                let exit = Exit { code: Some(code), signal: None, cause: ExitCause::NotStarted };
                FromAgent::StreamFailed { stream, message, exit: Some(exit) }
            }
        });
        // This drops the handle of the running task, which has nothing left to wait for.
        self.agent.streams.borrow_mut().reset(stream);
    }

    /// Sends bytes as the window allows.
    async fn send(&self, channel: Channel, mut bytes: Vec<u8>) {
        while !bytes.is_empty() {
            self.agent.outbox.has_room().await;
            let window = usize::try_from(self.windows.outgoing.get()).unwrap_or(usize::MAX);
            if window == 0 {
                self.windows.opened.notified().await;
                continue;
            }
            let rest = bytes.split_off(window.min(bytes.len()).min(CHUNK_MAX_BYTES));
            self.windows.outgoing.set(self.windows.outgoing.get() - bytes.len() as u64);
            self.agent.outbox.send_data(self.stream, channel, bytes);
            bytes = rest;
        }
    }

    /// Tells that nothing more comes on the channel.
    fn close(&self, channel: Channel) {
        self.agent.outbox.send_data(self.stream, channel, Vec::new());
    }

    /// Sends everything from a pipe, then closes the channel.
    async fn send_all(&self, pipe: &Pipe, channel: Channel, mut writer_gone: watch::Receiver<bool>) {
        while let Some(bytes) = pipe.read(&mut writer_gone).await {
            self.send(channel, bytes).await;
        }
        self.close(channel);
    }
}

/// What the server sends on one stream.
pub struct Inputs {
    stream: Stream,
    received: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Inputs {
    /// The next bytes; none at the end. Call [`Inputs::used`] for them.
    async fn next(&mut self) -> Option<Vec<u8>> {
        self.received.recv().await.filter(|bytes| !bytes.is_empty())
    }

    /// That many bytes are used: the server may send as many again.
    fn used(&self, count: usize) {
        let Stream { agent, stream, windows } = &self.stream;
        windows.incoming.set(windows.incoming.get() + count);
        let bytes = u32::try_from(count).expect("a frame is smaller");
        agent.outbox.send(&FromAgent::Window { stream: *stream, bytes });
    }

    /// Writes what comes into a pipe until the end. Where nobody reads it any more, the rest vanishes.
    async fn write_to(&mut self, pipe: &Pipe) {
        let mut broken = false;
        while let Some(bytes) = self.next().await {
            broken = broken || pipe.write_all(&bytes).await.is_err();
            self.used(bytes.len());
        }
    }
}
