//! What waits to be sent on the connection, gathered into large writes.

use std::cell::{Cell, RefCell};

use calve_wire::agent::FromAgent;
use calve_wire::frame::{Channel, Frame};
use tokio::sync::Notify;

use super::spool::Spool;

/// Stream data that waits for the connection before streams are no longer read: a few writes ahead.
const STREAM_DATA_MAX_BYTES: usize = 1024 * 1024;
/// Most bytes of log in one write: large enough for few system calls, small enough for a keystroke's echo to pass soon.
const LOG_BATCH_BYTES: usize = 256 * 1024;

/// The sending half of the present connection.
#[derive(Default)]
pub struct Outbox {
    state: RefCell<State>,
    /// There may be something to send.
    pub ready: Notify,
    room: Notify,
    generation: Cell<u64>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// The last log entry that was taken for sending, once the server has said hello.
    log_sent: Option<u64>,
}

impl Outbox {
    /// A new connection: what waited for the old one is dropped.
    pub fn begin(&self, preamble: &[u8]) {
        self.generation.set(self.generation.get() + 1);
        *self.state.borrow_mut() = State { bytes: preamble.to_vec(), log_sent: None };
        self.ready.notify_one();
        self.room.notify_waiters();
    }

    /// Counts connections: tells whether something still belongs to the present one.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// The server has said hello and has the log up to `log_seq`: messages and log may follow.
    pub fn greet(&self, welcome: &FromAgent, log_seq: u64) {
        self.state.borrow_mut().log_sent = Some(log_seq);
        self.send(welcome);
    }

    /// The server was greeted before the connection began here, and the log was sent up to `log_seq`.
    pub fn resume(&self, log_seq: u64) {
        self.state.borrow_mut().log_sent = Some(log_seq);
        self.ready.notify_one();
    }

    /// Sends a message; dropped where there is no connection, as it would be outdated on the next one.
    pub fn send(&self, message: &FromAgent) {
        let json = serde_json::to_vec(message).expect("a message holds nothing that JSON cannot say");
        self.push(&Frame::Control(json));
    }

    /// Waits until data may be sent without piling up.
    pub async fn has_room(&self) {
        while self.state.borrow().bytes.len() > STREAM_DATA_MAX_BYTES {
            self.room.notified().await;
        }
    }

    /// Sends bytes of a stream; none close the channel.
    pub fn send_data(&self, stream: u32, channel: Channel, bytes: Vec<u8>) {
        self.push(&Frame::Data { stream, channel, bytes });
    }

    fn push(&self, frame: &Frame) {
        let mut state = self.state.borrow_mut();
        if state.log_sent.is_some() {
            frame.encode(&mut state.bytes);
            self.ready.notify_one();
        }
    }

    /// Everything for the next write; empty where there is nothing to send.
    pub fn take(&self, spool: &Spool) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        let mut batch = std::mem::take(&mut state.bytes);
        if let Some(sent) = &mut state.log_sent {
            let limit = batch.len() + LOG_BATCH_BYTES;
            for entry in spool.after(*sent) {
                *sent = entry.seq;
                Frame::Log(entry.clone()).encode(&mut batch);
                if batch.len() >= limit {
                    break;
                }
            }
        }
        self.room.notify_waiters();
        batch
    }

    /// Whether a server has said hello on the present connection.
    pub fn has_listener(&self) -> bool {
        self.state.borrow().log_sent.is_some()
    }

    /// Whether everything that was ever to be sent has been taken.
    pub fn is_drained(&self, spool: &Spool) -> bool {
        let state = self.state.borrow();
        state.bytes.is_empty() && state.log_sent.is_none_or(|sent| sent >= spool.last_seq())
    }
}
