//! Output of programs into the spool, and the programs' wait for room there.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use calve_wire::frame::Channel;
use tokio::sync::{Notify, watch};

use super::Agent;
use super::pipe::Pipe;
use super::spool::Spool;

/// The log of the machine.
#[derive(Default)]
pub struct Log {
    /// What was not kept yet.
    pub spool: RefCell<Spool>,
    room: Notify,
}

impl Log {
    /// The server has kept everything up to `seq`.
    pub fn kept(&self, seq: u64) {
        self.spool.borrow_mut().kept(seq);
        self.room.notify_waiters();
    }

    /// A server that has everything up to `seq` goes on from there.
    pub fn resume(&self, seq: u64) {
        self.spool.borrow_mut().resume(seq);
        self.room.notify_waiters();
    }

    /// Waits for room in the spool, or until nobody writes any more: what is left in a pipe is bounded.
    async fn room(&self, writer_gone: &mut watch::Receiver<bool>) {
        while !self.spool.borrow().has_room() && !*writer_gone.borrow_and_update() {
            tokio::select! {
                () = self.room.notified() => {}
                changed = writer_gone.changed() => if changed.is_err() { self.room.notified().await },
            }
        }
    }
}

/// Carries what comes out of a pipe into the log until its end. A full spool leaves the pipe unread, so that the program
/// blocks: nothing is lost.
pub async fn collect(agent: Rc<Agent>, pipe: Pipe, channel: Channel, mut writer_gone: watch::Receiver<bool>) {
    loop {
        agent.log.room(&mut writer_gone).await;
        let Some(bytes) = pipe.read(&mut writer_gone).await else { return };
        agent.log.spool.borrow_mut().add(unix_ms(), channel, bytes);
        agent.outbox.ready.notify_one();
    }
}

/// Milliseconds since the epoch.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
