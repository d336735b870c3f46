//! Large archives told of while they are cut, so that the cache hashes them meanwhile and their commits find them checked.
//!
//! Nothing depends on it: a cache that does not know that, refuses it or stalls does all of it at the commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{LOOK_EVERY, Shared};
use crate::PathInfo;
use crate::recipe::{Piece, Position};
use crate::remote::{AHEAD_ROOM_KIB, ArchivePart, PART_PIECES_MAX, PART_POSITIONS_MAX, ahead_room_kib};

/// Archives from this size on: a smaller one is hashed in the time of a request.
const AHEAD_BYTES_MIN: u64 = 1 << 20;
/// How long a push waits for the cache to hash what was cut: then the commit does it.
const END_TIMEOUT: Duration = Duration::from_secs(120);
/// Parts that wait for the cache.
const PARTS_WAITING: usize = 1;
/// How long a cache that refuses is left alone: others may keep it busy, or it does not know this at all.
const AGAIN: Duration = Duration::from_secs(1);

/// What a push has of such archives.
pub(super) struct Aheads {
    /// As much room as the cache has at most for all pushes, in KiB: more would be refused.
    room: Arc<Semaphore>,
    /// When the cache is asked again.
    again: Mutex<Option<Instant>>,
}

impl Default for Aheads {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(AHEAD_ROOM_KIB)), again: Mutex::default() }
    }
}

impl Aheads {
    fn again(&self) -> MutexGuard<'_, Option<Instant>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was cut off an archive.
pub(super) struct Cut {
    pub piece: Piece,
    /// The positions that were found since the one before.
    pub positions: Vec<Position>,
    /// Whether the cache has its bytes, lent to it in this process: before it has the chunk.
    pub lent: bool,
}

/// An archive that the cache is told of; given up when it is dropped.
pub(super) struct Ahead {
    give: Option<UnboundedSender<Cut>>,
    task: JoinHandle<()>,
    _room: OwnedSemaphorePermit,
}

impl Ahead {
    /// Begins with a path, if that helps.
    pub fn begin(info: &PathInfo, shared: &Arc<Shared>, runtime: &Handle) -> Option<Self> {
        let aheads = &shared.aheads;
        // In one process there is no request, and what is lent is to be hashed soon.
        let least = if shared.remote.in_process().is_some() { 0 } else { AHEAD_BYTES_MIN };
        if info.nar_size < least || aheads.again().is_some_and(|again| Instant::now() < again) {
            return None;
        }
        let room = Arc::clone(&aheads.room).try_acquire_many_owned(ahead_room_kib(info.nar_size)).ok()?;
        let (give, cut) = unbounded_channel();
        let task = runtime.spawn(tell(info.clone(), Arc::clone(shared), cut));
        Some(Self { give: Some(give), task, _room: room })
    }

    /// Tells of what comes next: at once where its bytes were lent, or else once the cache has it.
    pub fn tell(&self, cut: Cut) {
        // Nobody takes it where the cache refused it.
        let _ = self.give.as_ref().map(|give| give.send(cut));
    }

    /// Waits until the cache has hashed all that it was told of, has refused it, or takes too long.
    pub async fn end(mut self) {
        self.give = None;
        let _ = timeout(END_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell(info: PathInfo, shared: Arc<Shared>, cut: UnboundedReceiver<Cut>) {
    let (give, parts) = channel(PARTS_WAITING);
    let telling = give_parts(&shared, cut, give);
    let hashing = shared.remote.hash_ahead(info, parts);
    let mut hashing = std::pin::pin!(hashing);
    let hashed = tokio::select! {
        hashed = &mut hashing => hashed,
        () = telling => hashing.await,
    };
    if hashed.is_err() {
        *shared.aheads.again() = Some(Instant::now() + AGAIN);
    }
}

/// Gives what was lent or is in the cache of what was cut, in order.
async fn give_parts(shared: &Shared, mut cut: UnboundedReceiver<Cut>, give: Sender<ArchivePart>) {
    let mut settled = shared.settled.subscribe();
    let mut waiting = VecDeque::new();
    loop {
        let cutting = loop {
            match cut.try_recv() {
                Ok(next) => waiting.push_back(next),
                Err(error) => break error == TryRecvError::Empty,
            }
        };
        loop {
            let part = next_part(shared, &mut waiting);
            if part.pieces.is_empty() {
                break;
            }
            if give.send(part).await.is_err() {
                return;
            }
        }
        if !cutting && waiting.is_empty() {
            return;
        }
        // Behind what the cache has not yet, nothing can be told. An error would be that nobody pushes any more.
        let _ = match waiting.is_empty() {
            true => timeout(LOOK_EVERY, settled.changed()).await.unwrap_or(Ok(())),
            false => settled.changed().await,
        };
    }
}

fn next_part(shared: &Shared, waiting: &mut VecDeque<Cut>) -> ArchivePart {
    let chunks = shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
    let mut part = ArchivePart::default();
    while let Some(next) = waiting.front()
        && part.pieces.len() < PART_PIECES_MAX
        && part.positions.len() + next.positions.len() <= PART_POSITIONS_MAX
        && (next.lent || chunks.get(&next.piece.id) == Some(&true))
        && let Some(next) = waiting.pop_front()
    {
        part.pieces.push(next.piece);
        part.positions.extend(next.positions);
    }
    part
}
