//! Plain bytes of chunks that were checked or cut a moment ago, for whoever hashes their archives next: else each chunk of a push
//! would be read again and made plain a second time. Who hashes is slower for each chunk that was forgotten: so those who
//! bring them wait for him, or none would be here in time any more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::chunk::ChunkId;
use crate::push::IN_FLIGHT_KIB;

/// Most bytes that are kept, of all pushes at once: what one push has under way, beside as much that waits to be hashed.
const RECENT_BYTES_MAX: usize = 96 << 20;
/// With more than this, uploads wait for those who take chunks.
pub const UPLOADED_WAITING_BYTES: usize = 32 << 20;
/// And a push in this process, whose chunks are kept from when they are cut.
pub const LENT_WAITING_BYTES: usize = IN_FLIGHT_KIB * 1024 + UPLOADED_WAITING_BYTES;
const _: () = assert!(LENT_WAITING_BYTES < RECENT_BYTES_MAX);
/// How long they wait: several pushes may keep them busy all the time.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// How long they are kept: what is hashed ahead is hashed as soon as it has come, and an idle cache shall be small.
const RECENT_FOR: Duration = Duration::from_secs(10);

/// The chunks; clones share them.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// How many take chunks just now: who waits to be told of further ones does not.
    takers: AtomicUsize,
    /// Told when one was taken.
    taken: Notify,
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkId, Kept>,
    /// Oldest first, each by its number: one that was taken and came again has another.
    order: VecDeque<(Instant, u64, ChunkId)>,
    bytes: usize,
    count: u64,
    /// Whether somebody is going to forget what gets old.
    swept: bool,
}

/// A chunk.
struct Kept {
    plain: Bytes,
    /// The number of its last coming.
    number: u64,
    /// How often it came and was not taken: an archive may have it several times.
    times: u32,
}

impl Recent {
    /// Keeps a chunk whose bytes have its id, to be taken as often as it was put; to be called within a tokio runtime.
    pub fn put(&self, id: ChunkId, plain: Bytes) {
        let mut state = self.lock();
        state.count += 1;
        let number = state.count;
        state.order.push_back((Instant::now(), number, id));
        match state.chunks.get_mut(&id) {
            Some(kept) => {
                kept.number = number;
                kept.times += 1;
            }
            None => {
                state.bytes += plain.len();
                state.chunks.insert(id, Kept { plain, number, times: 1 });
            }
        }
        while state.bytes > RECENT_BYTES_MAX {
            state.forget_oldest();
        }
        if !state.swept {
            state.swept = true;
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Takes a chunk: who hashes an archive needs most chunks once.
    pub fn take(&self, id: &ChunkId) -> Option<Bytes> {
        let mut state = self.lock();
        let kept = state.chunks.get_mut(id)?;
        kept.times -= 1;
        let plain = kept.plain.clone();
        if kept.times == 0 {
            state.chunks.remove(id);
            state.bytes -= plain.len();
        }
        drop(state);
        self.0.taken.notify_waiters();
        Some(plain)
    }

    /// Somebody takes chunks, until this is dropped.
    pub fn taking(&self) -> Taking {
        self.0.takers.fetch_add(1, Ordering::Relaxed);
        Taking(self.clone())
    }

    /// Waits while those who take chunks have more than `most` bytes before them.
    pub async fn taken_in_time(&self, most: usize) {
        let waiting = async {
            loop {
                let taken = self.0.taken.notified();
                if self.0.takers.load(Ordering::Relaxed) == 0 || self.lock().bytes <= most {
                    return;
                }
                taken.await;
            }
        };
        // What is forgotten meanwhile is read again.
        let _ = timeout(WAIT_MAX, waiting).await;
    }

    /// Forgets what gets old, until nothing is left.
    async fn sweep(self) {
        loop {
            let until = {
                let mut state = self.lock();
                while state.order.front().is_some_and(|(since, ..)| since.elapsed() >= RECENT_FOR) {
                    state.forget_oldest();
                }
                match state.order.front() {
                    Some((since, ..)) => *since + RECENT_FOR,
                    None => {
                        *state = State::default();
                        return;
                    }
                }
            };
            tokio::time::sleep_until(until).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who takes chunks.
pub(super) struct Taking(Recent);

impl Drop for Taking {
    fn drop(&mut self) {
        let inner = &*self.0.0;
        inner.takers.fetch_sub(1, Ordering::Relaxed);
        inner.taken.notify_waiters();
    }
}

impl State {
    fn forget_oldest(&mut self) {
        let Some((_, number, id)) = self.order.pop_front() else { return };
        if self.chunks.get(&id).is_some_and(|kept| kept.number == number)
            && let Some(kept) = self.chunks.remove(&id)
        {
            self.bytes -= kept.plain.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_in_bytes_and_in_time() {
        let recent = Recent::default();
        let put = |n: u8, len| recent.put(ChunkId([n; 32]), vec![n; len].into());
        let take = |n: u8| recent.take(&ChunkId([n; 32])).map(|plain| plain.len());
        put(1, 10);
        put(2, RECENT_BYTES_MAX - 10);
        put(3, 1);
        assert_eq!(take(1), None, "the oldest makes room");
        assert_eq!(take(3), Some(1));
        assert_eq!(take(3), None);
        // It came again: what is known of its first coming is no reason to forget it.
        put(3, 1);
        tokio::time::sleep(RECENT_FOR / 2).await;
        put(3, 1);
        tokio::time::sleep(RECENT_FOR * 3 / 4).await;
        assert_eq!(take(2), None);
        assert_eq!(recent.lock().bytes, 1);
        assert_eq!([take(3), take(3), take(3)], [Some(1), Some(1), None], "as often as it came");
        put(4, 1);
        tokio::time::sleep(RECENT_FOR * 2).await;
        let state = recent.lock();
        assert!(state.chunks.is_empty() && state.order.is_empty() && state.bytes == 0 && !state.swept);
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_wait_for_who_has_many_before_him_and_not_for_ever() {
        let recent = Recent::default();
        let id = |n: u8| ChunkId([n; 32]);
        let most = UPLOADED_WAITING_BYTES;
        for n in 1..=3 {
            recent.put(id(n), vec![0; most / 2].into());
        }
        let waited = async || {
            let begun = Instant::now();
            recent.taken_in_time(most).await;
            begun.elapsed()
        };
        assert_eq!(waited().await, Duration::ZERO, "nobody takes any");
        let taking = recent.taking();
        assert_eq!(waited().await, WAIT_MAX, "nobody goes on");
        let took = Duration::from_millis(100);
        let take = async {
            tokio::time::sleep(took).await;
            recent.take(&id(1));
        };
        assert_eq!(tokio::join!(waited(), take).0, took, "there are few left");
        recent.put(id(1), vec![0; most / 2].into());
        let end = async {
            tokio::time::sleep(took).await;
            drop(taking);
        };
        assert_eq!(tokio::join!(waited(), end).0, took, "he has taken all that he was told of");
    }
}
