//! The program's standard input: held for the program, whoever sent it over which connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use calve_wire::agent::FromAgent;
use calve_wire::frame::STREAM_WINDOW_BYTES;
use tokio::sync::Notify;

use super::Agent;
use super::pipe::Pipe;

/// Most bytes that wait for a program that does not read: every new connection may send a window more.
const WAITING_MAX_BYTES: usize = 16 * STREAM_WINDOW_BYTES;

/// Input that waits for the program, in order.
#[derive(Default)]
pub struct Stdin {
    queue: RefCell<VecDeque<Piece>>,
    added: Notify,
    /// Bytes granted to the present connection that it has not counted yet.
    granted: Cell<usize>,
}

struct Piece {
    /// Empty at the end.
    bytes: Vec<u8>,
    /// The connection that it came over; only that one gets its window back.
    generation: u64,
}

impl Stdin {
    /// Takes bytes from the server; none are the end. False where the program is too far behind.
    pub fn add(&self, bytes: Vec<u8>, generation: u64) -> bool {
        let mut queue = self.queue.borrow_mut();
        let waiting: usize = queue.iter().map(|piece| piece.bytes.len()).sum();
        if waiting + bytes.len() > WAITING_MAX_BYTES {
            return false;
        }
        queue.push_back(Piece { bytes, generation });
        self.added.notify_one();
        true
    }

    /// A new connection begins with a full window.
    pub fn new_connection(&self) {
        self.granted.set(0);
    }

    /// Bytes granted since the last call.
    pub fn take_granted(&self) -> usize {
        self.granted.take()
    }

    async fn next(&self) -> Piece {
        loop {
            if let Some(piece) = self.queue.borrow_mut().pop_front() {
                return piece;
            }
            self.added.notified().await;
        }
    }

    /// The end stays in the queue for the next run of the program.
    fn put_back(&self, piece: Piece) {
        self.queue.borrow_mut().push_front(piece);
    }
}

/// Writes what comes into the program's pipe until the end, then closes it; without a pipe it is dropped. A program that does not read its input any
/// more makes the rest vanish, as a closed pipe does, and the sender must not wait for it.
pub async fn feed(agent: Rc<Agent>, pipe: Option<Pipe>) {
    let mut pipe = pipe;
    loop {
        let piece = agent.stdin.next().await;
        if piece.bytes.is_empty() {
            agent.stdin.put_back(piece);
            return;
        }
        let piece = Grants { agent: &agent, piece };
        if let Some(open) = &pipe
            && open.write_all(&piece.piece.bytes).await.is_err()
        {
            pipe = None;
        }
    }
}

/// Grants a piece's bytes again once it is used, also where the program ended in the middle of it.
struct Grants<'a> {
    agent: &'a Agent,
    piece: Piece,
}

impl Drop for Grants<'_> {
    fn drop(&mut self) {
        let Self { agent, piece } = self;
        if piece.generation == agent.outbox.generation() {
            agent.stdin.granted.set(agent.stdin.granted.get() + piece.bytes.len());
            let bytes = u32::try_from(piece.bytes.len()).expect("a frame is smaller");
            agent.outbox.send(&FromAgent::Window { stream: 0, bytes });
        }
    }
}
