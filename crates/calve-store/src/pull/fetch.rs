//! Chunks fetched from several caches at once, in batches, each from the next cache where one fails.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinError, JoinSet};

use super::plan::{Wanted, stalled, timely};
use super::slots::{IN_FLIGHT_FIRST_KIB, IN_FLIGHT_KIB, Slots, room_of};
use super::{Source, blocking};
use crate::TransferError;
use crate::chunk::{CHUNK_STORED_MAX, ChunkId, StoredChunk};
use crate::decode;
use crate::processors::processors;
use crate::progress::Progress;
use crate::remote::RemoteError;

/// Plain bytes of one request in KiB: enough for a request's overhead not to count, little enough to spread over caches.
const BATCH_KIB: usize = 2048;
/// Requests for chunks at once: as much as is in flight. A request takes the round trip and the time to make its chunks
/// plain, so that on a far line half of that is half the speed.
const REQUESTS_MAX: usize = IN_FLIGHT_KIB / BATCH_KIB;
/// How long nothing happens, with all that may be in flight asked for and nothing of it there, until twice as much may be:
/// the line is far. At 50 ms of round-trip time that is [`IN_FLIGHT_KIB`] before the first answer.
const FAR_AFTER: Duration = Duration::from_millis(20);
/// Chunks that are decoded by one job: about half a mebibyte.
const DECODE_CHUNKS: usize = 8;
/// How often all caches are asked again for what none of them gave.
const ROUNDS_MAX: u32 = 5;
/// Wait before the second round; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(200);
/// Failures after which a cache does not fall behind any further.
const FAILURES_MAX: usize = 8;

pub(super) struct Fetcher {
    caches: Vec<Cache>,
    slots: Arc<Slots>,
    stall_timeout: Duration,
    progress: Arc<Progress>,
    /// One a core.
    decoders: Arc<Semaphore>,
}

struct Cache {
    source: Source,
    in_flight: AtomicUsize,
    failures: AtomicUsize,
}

impl Fetcher {
    pub fn new(
        sources: &[Source],
        slots: Arc<Slots>,
        stall_timeout: Duration,
        progress: Arc<Progress>,
    ) -> Arc<Self> {
        let cache = |source: &Source| Cache {
            source: source.clone(),
            in_flight: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        };
        let decoders = Arc::new(Semaphore::new(processors()));
        Arc::new(Self {
            caches: sources.iter().map(cache).collect(),
            slots,
            stall_timeout,
            progress,
            decoders,
        })
    }

    /// Fetches what is wanted in order, and what is demanded at once; ends when nobody can demand any more.
    pub async fn run(
        self: Arc<Self>,
        wanted: Arc<[Wanted]>,
        mut demanded: UnboundedReceiver<Wanted>,
    ) -> Result<(), TransferError> {
        let mut batches = batches(&wanted).into_iter();
        let mut next = batches.next();
        let mut tasks = JoinSet::new();
        let mut demanders = true;
        let mut in_flight = IN_FLIGHT_FIRST_KIB;
        while next.is_some() || demanders || !tasks.is_empty() {
            let room = next.as_ref().map_or(0, |range| room(&wanted[range.clone()]));
            let may_ask = next.is_some() && tasks.len() < REQUESTS_MAX;
            tokio::select! {
                biased;
                Some(done) = tasks.join_next() => joined(done)?,
                demand = demanded.recv(), if demanders => match demand {
                    Some(demand) if self.slots.is_kept(&demand.id) => {}
                    Some(demand) => drop(tasks.spawn(Arc::clone(&self).batch(vec![demand]))),
                    None => demanders = false,
                },
                permit = self.slots.room.acquire_many(room as u32), if may_ask => {
                    permit.expect("never closed").forget();
                    let range = next.take().expect("asked for it");
                    drop(tasks.spawn(Arc::clone(&self).batch(wanted[range].to_vec())));
                    next = batches.next();
                }
                () = tokio::time::sleep(FAR_AFTER), if next.is_some() && in_flight < IN_FLIGHT_KIB => {
                    if self.slots.is_empty() {
                        let more = in_flight.min(IN_FLIGHT_KIB - in_flight);
                        self.slots.room.add_permits(more);
                        in_flight += more;
                    }
                }
            }
        }
        Ok(())
    }

    async fn batch(self: Arc<Self>, mut missing: Vec<Wanted>) -> Result<(), TransferError> {
        let mut backoff = BACKOFF;
        for round in 1.. {
            let mut may_pass = false;
            let mut last = None;
            for cache in self.in_order() {
                let Err(error) = self.fetch(cache, &mut missing).await else { continue };
                let TransferError::Store(_) = error else {
                    may_pass |= matches!(&error, TransferError::Remote(error) if error.may_pass());
                    cache.failures.fetch_add(1, Ordering::Relaxed);
                    // What a cache did wrong says more than that another one has nothing.
                    let says_nothing = matches!(error, TransferError::Remote(RemoteError::Missing { .. }));
                    if last.is_none() || !says_nothing {
                        last = Some(error);
                    }
                    continue;
                };
                return Err(error);
            }
            if missing.is_empty() {
                return Ok(());
            }
            if !may_pass || round == ROUNDS_MAX {
                return Err(last.expect("something is missing because a cache failed"));
            }
            self.progress.retries.add(1);
            tokio::time::sleep(backoff).await;
            backoff *= 2;
        }
        unreachable!("the last round returns")
    }

    /// The caches, those that fail least and are least busy first.
    fn in_order(&self) -> Vec<&Cache> {
        let mut caches: Vec<_> = self.caches.iter().collect();
        caches.sort_by_key(|cache| {
            let failures = cache.failures.load(Ordering::Relaxed).min(FAILURES_MAX);
            (failures, cache.in_flight.load(Ordering::Relaxed))
        });
        caches
    }

    /// Fetches what is missing from one cache; what came and is right is missing no more.
    async fn fetch(&self, cache: &Cache, missing: &mut Vec<Wanted>) -> Result<(), TransferError> {
        if missing.is_empty() {
            return Ok(());
        }
        cache.in_flight.fetch_add(1, Ordering::Relaxed);
        let (came, result) = self.receive(cache, missing).await;
        cache.in_flight.fetch_sub(1, Ordering::Relaxed);
        missing.retain(|wanted| !came.contains(&wanted.id));
        match result {
            Ok(()) if !missing.is_empty() => Err(damaged(&cache.source, missing[0].id, "it did not come")),
            result => result,
        }
    }

    async fn receive(&self, cache: &Cache, missing: &[Wanted]) -> (Vec<ChunkId>, Result<(), TransferError>) {
        let (source, timeout) = (&cache.source, self.stall_timeout);
        let ids = missing.iter().map(|wanted| wanted.id).collect();
        let mut stream = match timely(source, timeout, source.remote.chunks(ids)).await {
            Ok(stream) => stream,
            Err(error) => return (Vec::new(), Err(error.into())),
        };
        let by_id: HashMap<_, _> = missing.iter().map(|wanted| (wanted.id, *wanted)).collect();
        let mut decoding = JoinSet::new();
        let mut group = Vec::new();
        let mut result = Ok(());
        for _ in missing {
            let chunk = match tokio::time::timeout(timeout, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    result = Err(error.into());
                    break;
                }
                Ok(None) => break,
                Err(_) => {
                    result = Err(stalled(source, timeout).into());
                    break;
                }
            };
            let expected = by_id.get(&chunk.id).filter(|wanted| wanted.len == chunk.len);
            let Some(wanted) = expected.filter(|_| chunk.zstd.len() <= CHUNK_STORED_MAX as usize) else {
                result = Err(damaged(source, chunk.id, "nobody asked for a chunk of that id and size"));
                break;
            };
            self.progress.bytes_moved.add(chunk.zstd.len() as u64);
            group.push((chunk, *wanted));
            if group.len() == DECODE_CHUNKS {
                decoding.spawn(self.decode(std::mem::take(&mut group)));
            }
        }
        decoding.spawn(self.decode(group));
        let mut came = Vec::with_capacity(missing.len());
        while let Some(decoded) = decoding.join_next().await {
            let (right, wrong) = joined(decoded);
            came.extend(right);
            if let Some(error) = wrong {
                result = Err(match error {
                    Wrong::Chunk(error) => damaged(source, error.id, &error.message),
                    Wrong::Slots(error) => error,
                });
            }
        }
        self.progress.chunks_moved.add(came.len() as u64);
        (came, result)
    }

    /// A job that makes chunks plain and hands them over.
    fn decode(&self, group: Vec<(StoredChunk, Wanted)>) -> impl Future<Output = Decoded> + use<> {
        let (slots, decoders) = (Arc::clone(&self.slots), Arc::clone(&self.decoders));
        async move {
            let _turn = decoders.acquire_owned().await.expect("never closed");
            blocking(move || Ok(decode_all(&slots, group)))
                .await
                .unwrap_or_else(|error| (Vec::new(), Some(Wrong::Slots(error))))
        }
    }
}

type Decoded = (Vec<ChunkId>, Option<Wrong>);

enum Wrong {
    Chunk(crate::cut::ChunkError),
    Slots(TransferError),
}

fn decode_all(slots: &Slots, group: Vec<(StoredChunk, Wanted)>) -> Decoded {
    let (mut right, mut wrong) = (Vec::with_capacity(group.len()), None);
    for (chunk, wanted) in group {
        match decode::plain(&chunk) {
            Err(error) => wrong = Some(Wrong::Chunk(error)),
            Ok(plain) => match slots.put(&chunk, plain, &wanted) {
                Ok(()) => right.push(chunk.id),
                Err(error) => return (right, Some(Wrong::Slots(error))),
            },
        }
    }
    (right, wrong)
}

/// What a task gave; its panics go on here.
fn joined<T>(result: Result<T, JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn damaged(source: &Source, id: ChunkId, message: &str) -> TransferError {
    TransferError::Damaged {
        what: format!("chunk {id}"),
        cache: source.name.clone(),
        message: message.to_owned(),
    }
}

fn room(wanted: &[Wanted]) -> usize {
    wanted.iter().map(|wanted| room_of(wanted.len)).sum()
}

/// Ranges of about [`BATCH_KIB`].
fn batches(wanted: &[Wanted]) -> Vec<Range<usize>> {
    let (mut ranges, mut begin, mut room) = (Vec::new(), 0, 0);
    for (n, next) in wanted.iter().enumerate() {
        room += room_of(next.len);
        if room >= BATCH_KIB {
            ranges.push(begin..n + 1);
            (begin, room) = (n + 1, 0);
        }
    }
    if begin < wanted.len() {
        ranges.push(begin..wanted.len());
    }
    ranges
}
