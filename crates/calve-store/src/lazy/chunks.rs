//! Chunks as they are touched: from memory, from the disk, else from caches.
//!
//! ```text
//! read ─▶ memory ─▶ ring ─▶ pending ─▶ urgent ─┐
//! read-ahead ──────────────▶ pending ─▶ ahead ──┴▶ batches ─▶ caches ─▶ id checked ─▶ ring, memory, whoever waits
//! ```
//! However many wait for a chunk, it comes once. What a read waits for goes before what may be read next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::ring::Ring;
use crate::chunk::{CHUNK_STORED_MAX, ChunkId};
use crate::decode;
use crate::progress::Progress;
use crate::pull::{STALL_TIMEOUT, Source, stalled, timely};
use crate::recipe::Piece;
use crate::remote::RemoteError;

/// How long a read waits for caches that are away or stall before it fails: long enough for a cache that is started again,
/// short enough for a program that is to notice.
pub const READ_MAX: Duration = Duration::from_secs(60);
/// Plain bytes of chunks in memory; the kernel's page cache holds what was read.
const MEMORY_BYTES: usize = 32 << 20;
/// Plain bytes of chunks on disk.
const RING_BYTES: u64 = 4 << 30;
/// Requests at once: with [`BATCH_BYTES`] each, 16 MiB are under way at most.
const REQUESTS_MAX: usize = 8;
/// Of these, requests for what nobody waits for yet.
const AHEAD_REQUESTS_MAX: usize = 4;
/// Plain bytes of one request: at 1 Gbit/s half a round trip of 20 ms.
const BATCH_BYTES: u32 = 2 << 20;
/// Plain bytes that may be wanted ahead; beyond that, what was wanted first is forgotten.
const AHEAD_BYTES_MAX: u64 = 32 << 20;
/// Wait before all caches are asked again; it doubles each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest such wait: a cache that is back shall be noticed.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Where chunks come from and are kept.
#[derive(Clone)]
pub struct ChunksOptions {
    /// The caches, asked in this order.
    pub sources: Vec<Source>,
    /// Directory in which chunks are kept while the process lives; none keeps them in memory only.
    pub dir: Option<PathBuf>,
    /// How long a cache may send nothing.
    pub stall_timeout: Duration,
    /// How long a read waits for them all.
    pub read_max: Duration,
}

impl ChunksOptions {
    /// With everything else as it usually is.
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, dir: None, stall_timeout: STALL_TIMEOUT, read_max: READ_MAX }
    }
}

/// Why a chunk did not come; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkFailure(pub String);

/// The chunks of a closure; clones share them.
#[derive(Clone)]
pub struct Chunks(Arc<Inner>);

struct Inner {
    options: ChunksOptions,
    state: Mutex<State>,
    ring: Mutex<Option<Ring>>,
    /// Rings when there is something to fetch; not only in here, as who waits for it must not hold the rest.
    work: Arc<Notify>,
    progress: Progress,
}

#[derive(Default)]
struct State {
    memory: Memory,
    pending: HashMap<ChunkId, Pending>,
    urgent: VecDeque<ChunkId>,
    /// With their lengths, which are counted in `ahead_bytes` until they leave.
    ahead: VecDeque<Piece>,
    ahead_bytes: u64,
    ahead_requests: usize,
    /// Why caches failed last; none since one answered.
    trouble: Option<String>,
    /// When something was urgent last.
    urgent_at: Option<Instant>,
}

/// Who waits for a chunk.
type Waiter = oneshot::Sender<Result<Bytes, ChunkFailure>>;

/// A chunk that is to come.
struct Pending {
    len: u32,
    waiters: Vec<Waiter>,
    in_flight: bool,
    urgent: bool,
}

impl Chunks {
    /// Chunks that are fetched by tasks of this runtime until the last clone is dropped.
    pub fn new(options: ChunksOptions) -> Self {
        let ring = options.dir.as_deref().and_then(|dir| {
            let ring = Ring::new(dir, RING_BYTES);
            ring.inspect_err(
                |error| tracing::warn!(dir = %dir.display(), %error, "no chunks are kept on disk"),
            )
            .ok()
        });
        let inner = Inner {
            options,
            state: Mutex::default(),
            ring: Mutex::new(ring),
            work: Arc::new(Notify::new()),
            progress: Progress::default(),
        };
        let inner = Arc::new(inner);
        for _ in 0..REQUESTS_MAX {
            tokio::spawn(work(Arc::downgrade(&inner), inner.work.clone()));
        }
        Self(inner)
    }

    /// The caches.
    pub(super) fn sources(&self) -> &[Source] {
        &self.0.options.sources
    }

    /// How long a cache may send nothing.
    pub(super) fn stall_timeout(&self) -> Duration {
        self.0.options.stall_timeout
    }

    /// What has come so far.
    pub fn progress(&self) -> &Progress {
        &self.0.progress
    }

    /// The plain bytes of a chunk that is here.
    pub fn here(&self, id: &ChunkId) -> Option<Bytes> {
        if let Some(bytes) = self.0.state().memory.get(id) {
            return Some(bytes);
        }
        let mut ring = self.0.ring();
        let bytes = match ring.as_ref()?.get(id) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(%error, "the chunks on disk cannot be read");
                *ring = None;
                return None;
            }
        };
        drop(ring);
        self.0.state().memory.insert(*id, bytes.clone());
        Some(bytes)
    }

    /// The plain bytes of a chunk, whose id they have.
    pub async fn get(&self, piece: Piece) -> Result<Bytes, ChunkFailure> {
        if let Some(bytes) = self.here(&piece.id) {
            return Ok(bytes);
        }
        let (give, take) = oneshot::channel();
        self.0.want_urgently([(piece, Some(give))].into_iter());
        match tokio::time::timeout(self.0.options.read_max, take).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ChunkFailure("nothing is fetched any more".to_owned())),
            Err(_) => {
                let reason = self.0.state().trouble.clone();
                let reason = reason.unwrap_or_else(|| "no cache sent it".to_owned());
                let seconds = self.0.options.read_max.as_secs_f32();
                Err(ChunkFailure(format!("chunk {} did not come within {seconds} s: {reason}", piece.id)))
            }
        }
    }

    /// Fetches chunks that are likely to be read at once.
    pub fn want_now(&self, pieces: &[Piece]) {
        self.0.want_urgently(
            pieces.iter().filter(|piece| !self.is_here(&piece.id)).map(|piece| (*piece, None)),
        );
    }

    /// Fetches chunks that may be read next, when there is nothing better to do.
    pub fn want_next(&self, pieces: &[Piece]) {
        self.0.want_ahead(pieces.iter().filter(|piece| !self.is_here(&piece.id)));
    }

    fn is_here(&self, id: &ChunkId) -> bool {
        self.0.state().memory.chunks.contains_key(id)
            || self.0.ring().as_ref().is_some_and(|ring| ring.contains(id))
    }

    /// Waits until nothing has been urgent for this long.
    pub async fn quiet(&self, rest: Duration) {
        loop {
            let until = {
                let state = self.0.state();
                let waited_for = state.pending.values().any(|pending| pending.urgent);
                let since = if waited_for { Some(Instant::now()) } else { state.urgent_at };
                since.map(|since| since + rest)
            };
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) -> MutexGuard<'_, Option<Ring>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues chunks all at once, so that they go in one request.
    fn want_urgently(&self, wanted: impl Iterator<Item = (Piece, Option<Waiter>)>) {
        // Looked through first: whether a chunk is here asks for the same lock.
        let wanted: Vec<_> = wanted.collect();
        let mut state = self.state();
        for (piece, waiter) in wanted {
            // It may have come since it was looked for.
            if let Some(bytes) = state.memory.get(&piece.id) {
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Ok(bytes));
                }
                continue;
            }
            state.urgent_at = Some(Instant::now());
            let pending = state.pending.entry(piece.id).or_insert_with(|| Pending::new(piece.len));
            pending.waiters.extend(waiter);
            let queued = std::mem::replace(&mut pending.urgent, true) || pending.in_flight;
            if !queued {
                state.urgent.push_back(piece.id);
            }
        }
        let ring = !state.urgent.is_empty();
        drop(state);
        if ring {
            self.work.notify_one();
        }
    }

    fn want_ahead<'a>(&self, wanted: impl Iterator<Item = &'a Piece>) {
        let wanted: Vec<_> = wanted.copied().collect();
        let mut state = self.state();
        for piece in wanted {
            if state.pending.contains_key(&piece.id) {
                continue;
            }
            state.pending.insert(piece.id, Pending::new(piece.len));
            state.ahead.push_back(piece);
            state.ahead_bytes += u64::from(piece.len);
        }
        while state.ahead_bytes > AHEAD_BYTES_MAX {
            let Some(piece) = state.next_ahead() else { break };
            if state.pending.get(&piece.id).is_some_and(|it| !it.in_flight && !it.urgent) {
                state.pending.remove(&piece.id);
            }
        }
        let ring = !state.ahead.is_empty();
        drop(state);
        if ring {
            self.work.notify_one();
        }
    }

    /// What is fetched next in one request, and whether nobody waits for it.
    fn next_batch(&self) -> Option<(Vec<Piece>, bool)> {
        let mut state = self.state();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(id) = state.urgent.pop_front()
        {
            bytes += state.begin(id, &mut batch);
        }
        let ahead = batch.is_empty();
        if ahead && state.ahead_requests < AHEAD_REQUESTS_MAX {
            while bytes < BATCH_BYTES
                && let Some(piece) = state.next_ahead()
            {
                bytes += state.begin(piece.id, &mut batch);
            }
        }
        if batch.is_empty() {
            return None;
        }
        state.ahead_requests += usize::from(ahead);
        let more = !state.urgent.is_empty() || !state.ahead.is_empty();
        drop(state);
        if more {
            self.work.notify_one();
        }
        Some((batch, ahead))
    }

    /// Fetches a batch from one cache after the other, again and again while somebody waits for it.
    async fn fetch(&self, mut missing: Vec<Piece>) {
        let mut backoff = BACKOFF;
        loop {
            let mut failed = None;
            for source in &self.options.sources {
                match self.fetch_from(source, &mut missing).await {
                    Ok(()) => {}
                    Err(error) => failed = Some((error.to_string(), error.may_pass())),
                }
                if missing.is_empty() {
                    return;
                }
            }
            let (reason, may_pass) = failed.unwrap_or_else(|| ("no cache has it".to_owned(), false));
            self.note_trouble(&reason);
            if !may_pass && missing.len() > 1 {
                // One of them is wrong: the others shall not suffer for it.
                for piece in missing {
                    Box::pin(self.fetch(vec![piece])).await;
                }
                return;
            }
            missing.retain(|piece| self.is_waited_for(piece, &reason, may_pass));
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Fetches what is missing from one cache; what came and is right is missing no more.
    async fn fetch_from(&self, source: &Source, missing: &mut Vec<Piece>) -> Result<(), RemoteError> {
        let timeout = self.options.stall_timeout;
        let ids = missing.iter().map(|piece| piece.id).collect();
        let mut stream = timely(source, timeout, source.remote.chunks(ids)).await?;
        for piece in missing.clone() {
            let chunk = match tokio::time::timeout(timeout, stream.next()).await {
                Ok(Some(chunk)) => chunk?,
                Ok(None) => return Err(damaged(piece.id, "it did not come")),
                Err(_) => return Err(stalled(source, timeout)),
            };
            if chunk.id != piece.id || chunk.len != piece.len || chunk.zstd.len() > CHUNK_STORED_MAX as usize
            {
                return Err(damaged(piece.id, "a chunk of another id or size came in its place"));
            }
            let plain = decode::plain(&chunk).map_err(|error| damaged(error.id, &error.message))?;
            self.progress.bytes_moved.add(chunk.zstd.len() as u64);
            self.progress.chunks_moved.add(1);
            self.publish(piece.id, plain.into());
            missing.retain(|other| other.id != piece.id);
        }
        Ok(())
    }

    /// Keeps a chunk and hands it to whoever waits for it.
    fn publish(&self, id: ChunkId, bytes: Bytes) {
        let mut ring = self.ring();
        if let Some(Err(error)) = ring.as_mut().map(|ring| ring.put(id, &bytes)) {
            tracing::warn!(%error, "no more chunks are kept on disk");
            *ring = None;
        }
        drop(ring);
        let mut state = self.state();
        state.memory.insert(id, bytes.clone());
        let pending = state.pending.remove(&id);
        if state.trouble.take().is_some() {
            tracing::info!("blocks come again");
        }
        drop(state);
        for waiter in pending.into_iter().flat_map(|pending| pending.waiters) {
            let _ = waiter.send(Ok(bytes.clone()));
        }
    }

    /// Whether a chunk is to be asked for again. Who waits for one that no cache has right is told at once.
    fn is_waited_for(&self, piece: &Piece, reason: &str, may_pass: bool) -> bool {
        let mut state = self.state();
        let Some(pending) = state.pending.get_mut(&piece.id) else { return false };
        pending.waiters.retain(|waiter| !waiter.is_closed());
        if may_pass && !pending.waiters.is_empty() {
            self.progress.retries.add(1);
            return true;
        }
        let waiters = state.pending.remove(&piece.id).map(|pending| pending.waiters);
        drop(state);
        for waiter in waiters.into_iter().flatten() {
            let _ = waiter.send(Err(ChunkFailure(reason.to_owned())));
        }
        false
    }

    fn note_trouble(&self, reason: &str) {
        let before = self.state().trouble.replace(reason.to_owned());
        if before.as_deref() != Some(reason) {
            tracing::warn!("blocks do not come: {reason}");
        }
    }
}

impl State {
    /// Takes a chunk into a batch; gives its bytes.
    fn begin(&mut self, id: ChunkId, batch: &mut Vec<Piece>) -> u32 {
        let Some(pending) = self.pending.get_mut(&id).filter(|pending| !pending.in_flight) else { return 0 };
        pending.in_flight = true;
        batch.push(Piece { id, len: pending.len });
        pending.len
    }

    fn next_ahead(&mut self) -> Option<Piece> {
        let piece = self.ahead.pop_front()?;
        self.ahead_bytes -= u64::from(piece.len);
        Some(piece)
    }
}

impl Pending {
    fn new(len: u32) -> Self {
        Self { len, waiters: Vec::new(), in_flight: false, urgent: false }
    }
}

/// Fetches one batch after the other while anybody may want one.
async fn work(inner: Weak<Inner>, bell: Arc<Notify>) {
    loop {
        let Some(this) = inner.upgrade() else { return };
        match this.next_batch() {
            Some((batch, ahead)) => {
                this.fetch(batch).await;
                if ahead {
                    this.state().ahead_requests -= 1;
                }
            }
            None => {
                // The last user's going is seen after this at the latest.
                drop(this);
                let _ = tokio::time::timeout(BACKOFF_MAX, bell.notified()).await;
            }
        }
    }
}

fn damaged(id: ChunkId, message: &str) -> RemoteError {
    RemoteError::Damaged { what: format!("chunk {id}"), message: message.to_owned() }
}

/// The chunks used last.
#[derive(Default)]
struct Memory {
    chunks: HashMap<ChunkId, (Bytes, u64)>,
    by_use: BTreeMap<u64, ChunkId>,
    bytes: usize,
    uses: u64,
}

impl Memory {
    fn get(&mut self, id: &ChunkId) -> Option<Bytes> {
        let (bytes, used) = self.chunks.get_mut(id)?;
        self.uses += 1;
        self.by_use.remove(used);
        *used = self.uses;
        self.by_use.insert(self.uses, *id);
        Some(bytes.clone())
    }

    fn insert(&mut self, id: ChunkId, bytes: Bytes) {
        if self.get(&id).is_some() {
            return;
        }
        self.uses += 1;
        self.bytes += bytes.len();
        self.chunks.insert(id, (bytes, self.uses));
        self.by_use.insert(self.uses, id);
        while self.bytes > MEMORY_BYTES
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            let oldest = self.chunks.remove(&oldest);
            self.bytes -= oldest.map_or(0, |(bytes, _)| bytes.len());
        }
    }
}
