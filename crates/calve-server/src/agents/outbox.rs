//! What waits to be sent on one connection, and the task part that sends it.

use std::io;

use calve_wire::agent::ToAgent;
use calve_wire::frame::Frame;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};

use super::LinkError;

/// Most control messages that wait for an agent that does not read: enough for a message to each of its streams.
const MESSAGES_MAX: usize = 1024;
/// Data frames that wait: two keep the connection busy, more only add to the delay of everybody's data.
const DATA_FRAMES_MAX: usize = 2;
/// Bytes that are gathered into one write.
const WRITE_BYTES: usize = 64 * 1024;

/// Where other tasks leave what shall be sent.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Frames already: a queue of messages would take ten times the memory, in every link.
    messages: mpsc::Sender<Vec<u8>>,
    data: mpsc::Sender<Frame>,
    kept: watch::Sender<u64>,
    /// Rings when something that must not be lost found no room.
    overflow: Notify,
}

/// What [`Outbox::sending`] takes from.
pub(super) struct Outgoing {
    messages: mpsc::Receiver<Vec<u8>>,
    data: mpsc::Receiver<Frame>,
    kept: watch::Receiver<u64>,
}

impl Outbox {
    pub(super) fn new() -> (Self, Outgoing) {
        let (messages, messages_end) = mpsc::channel(MESSAGES_MAX);
        let (data, data_end) = mpsc::channel(DATA_FRAMES_MAX);
        let kept = watch::Sender::new(0);
        let kept_end = kept.subscribe();
        let outbox = Self { messages, data, kept, overflow: Notify::new() };
        (outbox, Outgoing { messages: messages_end, data: data_end, kept: kept_end })
    }

    /// Leaves a message; they overtake data.
    pub(super) fn send(&self, message: &ToAgent) -> Result<(), LinkError> {
        let mut frame = Vec::new();
        encode(message, &mut frame);
        self.messages.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LinkError::Busy,
            mpsc::error::TrySendError::Closed(_) => LinkError::Broken,
        })
    }

    /// Leaves a message without which the connection's state is wrong; where there is no room the connection ends.
    pub(super) fn send_or_break(&self, message: &ToAgent) {
        if self.send(message) == Err(LinkError::Busy) {
            self.overflow.notify_one();
        }
    }

    /// Leaves data, once there is room.
    pub(super) async fn send_data(&self, frame: Frame) -> Result<(), LinkError> {
        self.data.send(frame).await.map_err(|_| LinkError::Broken)
    }

    /// Notes up to where the log is kept; only the newest number is sent.
    pub(super) fn log_kept(&self, seq: u64) {
        self.kept.send_replace(seq);
    }

    /// Returns when a message that must not be lost was lost.
    pub(super) async fn overflowed(&self) {
        self.overflow.notified().await;
    }
}

impl Outgoing {
    /// Sends everything that comes, until the connection breaks or the outbox is gone.
    pub(super) async fn send_all(mut self, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                biased;
                message = self.messages.recv() => match message {
                    Some(message) => buffer = message,
                    None => return Ok(()),
                },
                Ok(()) = self.kept.changed() => {
                    let seq = *self.kept.borrow_and_update();
                    encode(&ToAgent::LogKept { seq }, &mut buffer);
                }
                Some(frame) = self.data.recv() => frame.encode(&mut buffer),
            }
            while buffer.len() < WRITE_BYTES
                && let Ok(message) = self.messages.try_recv()
            {
                buffer.extend_from_slice(&message);
            }
            writer.write_all(&buffer).await?;
            writer.flush().await?;
            // Not kept: 1,000 idle links shall hold no buffers.
            buffer = Vec::new();
        }
    }
}

/// Appends a message as a frame.
pub(super) fn encode(message: &ToAgent, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(message).expect("a message holds nothing that JSON cannot say");
    Frame::Control(json).encode(out);
}
