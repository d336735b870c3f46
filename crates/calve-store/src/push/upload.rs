//! Chunks asked for, compressed and uploaded.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::cut_path::{Found, Plain};
use super::{ANSWER_TIMEOUT, LOOK_EVERY, Shared, joined};
use crate::TransferError;
use crate::chunk::{ChunkId, StoredChunk};
use crate::processors::processors;
use crate::pull::blocking;
use crate::recipe::Piece;
use crate::remote::UPLOAD_BYTES_MAX;
use crate::retry::retried;

/// Chunks of one question which of them are missing: 64 MiB of archives for 32 KiB of ids.
const ASK_CHUNKS: usize = 1024;
/// Questions that wait for their answers at once: they need only outlast a round trip.
const ASKING_MAX: usize = 8;
/// How long a question waits to be full. Without an end, it could wait for room that it takes itself.
const ASK_GATHER: Duration = Duration::from_millis(20);
/// And an upload, which is flushed and written down in the cache: fewer of them are less work.
const UPLOAD_GATHER: Duration = Duration::from_millis(60);
/// Plain bytes that one job compresses.
const COMPRESS_BYTES: usize = 1 << 20;
/// Bytes of an upload: enough for its overhead not to count, little enough for several to be under way.
const UPLOAD_BYTES: usize = 4 << 20;
const _: () = assert!(UPLOAD_BYTES + 2 * COMPRESS_BYTES <= UPLOAD_BYTES_MAX);
/// Uploads at once.
const UPLOADS_MAX: usize = 6;
/// How long an upload may take: [`UPLOAD_BYTES`] over a line of 128 kbit/s.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Neighbours of an archive, which stay neighbours in a pack: whoever reads the archive reads them at once.
type Compressed = Vec<(StoredChunk, OwnedSemaphorePermit)>;

/// Uploads what is found, until nobody finds any more.
pub(super) async fn run(shared: Arc<Shared>, found: UnboundedReceiver<Found>) -> Result<(), TransferError> {
    let (compressed_tx, compressed) = unbounded_channel();
    let mut stages = JoinSet::new();
    stages.spawn(ask_all(Arc::clone(&shared), found, compressed_tx));
    stages.spawn(upload_all(shared, compressed));
    while let Some(done) = stages.join_next().await {
        joined(done)?;
    }
    Ok(())
}

async fn ask_all(
    shared: Arc<Shared>,
    mut found: UnboundedReceiver<Found>,
    compressed: UnboundedSender<Compressed>,
) -> Result<(), TransferError> {
    let compressors = Arc::new(Semaphore::new(processors()));
    let mut asking = JoinSet::new();
    // At first nobody has anything to compress, and in one process a question costs little.
    let gather_for = if shared.remote.in_process().is_some() { LOOK_EVERY } else { ASK_GATHER };
    let mut wait = Duration::ZERO;
    while let Some(first) = found.recv().await {
        let chunks = gather(first, &mut found, wait).await;
        wait = gather_for;
        while asking.len() >= ASKING_MAX {
            joined(asking.join_next().await.expect("some are asking"))?;
        }
        asking.spawn(ask(Arc::clone(&shared), chunks, Arc::clone(&compressors), compressed.clone()));
    }
    while let Some(done) = asking.join_next().await {
        joined(done)?;
    }
    Ok(())
}

async fn gather<T>(first: T, more: &mut UnboundedReceiver<T>, wait: Duration) -> Vec<T> {
    let mut items = vec![first];
    let deadline = Instant::now() + wait;
    loop {
        while items.len() < ASK_CHUNKS {
            match more.try_recv() {
                Ok(item) => items.push(item),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return items,
            }
        }
        if items.len() == ASK_CHUNKS || Instant::now() >= deadline {
            return items;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Asks which chunks are missing, and compresses these.
async fn ask(
    shared: Arc<Shared>,
    chunks: Vec<Found>,
    compressors: Arc<Semaphore>,
    compressed: UnboundedSender<Compressed>,
) -> Result<(), TransferError> {
    let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
    let ask = || shared.remote.missing_chunks(&ids);
    let answer = retried("asking which chunks are missing", ANSWER_TIMEOUT, &shared.progress, ask).await?;
    let missing: HashSet<_> = answer.into_iter().collect();
    let (missing, present): (Vec<_>, Vec<_>) =
        chunks.into_iter().partition(|chunk| missing.contains(&chunk.id));
    shared.progress.chunks_present.add(present.len() as u64);
    settle(&shared, present.iter().map(|chunk| chunk.id));
    drop(present);
    let mut jobs = JoinSet::new();
    for group in groups(missing) {
        let turn = Arc::clone(&compressors).acquire_owned().await.expect("never closed");
        let (level, compressed) = (shared.level, compressed.clone());
        jobs.spawn(blocking(move || {
            let _turn = turn;
            let mut done = Vec::with_capacity(group.len());
            for Found { id, len, plain, room } in group {
                done.push((compress(id, len, &plain, level)?, room));
            }
            // Whoever uploads is gone only if all fails.
            let _ = compressed.send(done);
            Ok(())
        }));
    }
    while let Some(done) = jobs.join_next().await {
        joined(done)?;
    }
    Ok(())
}

fn groups(chunks: Vec<Found>) -> Vec<Vec<Found>> {
    let (mut groups, mut group, mut bytes) = (Vec::new(), Vec::new(), 0);
    for chunk in chunks {
        bytes += chunk.len as usize;
        group.push(chunk);
        if bytes >= COMPRESS_BYTES {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

fn compress(id: ChunkId, len: u32, plain: &Plain, level: i32) -> Result<StoredChunk, TransferError> {
    let read;
    let plain = match plain {
        Plain::Held(bytes) => &bytes[..],
        Plain::OnDisk(view, at) => {
            read = view.chunk(Piece { id, len }, *at).ok_or_else(|| view.changed())?;
            &read
        }
    };
    let failed = |error: io::Error| TransferError::Compress { level, source: error };
    StoredChunk::compress(id, plain, level).map_err(failed)
}

async fn upload_all(
    shared: Arc<Shared>,
    mut compressed: UnboundedReceiver<Compressed>,
) -> Result<(), TransferError> {
    let mut uploads = JoinSet::new();
    while let Some(first) = compressed.recv().await {
        let chunks = gather_bytes(first, &mut compressed).await;
        while uploads.len() >= UPLOADS_MAX {
            joined(uploads.join_next().await.expect("some are uploading"))?;
        }
        uploads.spawn(upload(Arc::clone(&shared), chunks));
    }
    while let Some(done) = uploads.join_next().await {
        joined(done)?;
    }
    Ok(())
}

async fn gather_bytes(first: Compressed, more: &mut UnboundedReceiver<Compressed>) -> Compressed {
    let stored = |group: &Compressed| group.iter().map(|(chunk, _)| chunk.zstd.len()).sum::<usize>();
    let mut bytes = stored(&first);
    let mut chunks = first;
    let deadline = Instant::now() + UPLOAD_GATHER;
    while bytes < UPLOAD_BYTES {
        match timeout_at(deadline, more.recv()).await {
            Ok(Some(group)) => {
                bytes += stored(&group);
                chunks.extend(group);
            }
            _ => break,
        }
    }
    chunks
}

async fn upload(shared: Arc<Shared>, chunks: Compressed) -> Result<(), TransferError> {
    let (chunks, room): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
    // A copy of handles, not of bytes.
    let put = async || match shared.remote.in_process() {
        Some(cache) => cache.put_made(chunks.clone()).await,
        None => shared.remote.put_chunks(chunks.clone()).await,
    };
    retried("an upload", UPLOAD_TIMEOUT, &shared.progress, put).await?;
    shared.progress.chunks_moved.add(chunks.len() as u64);
    shared.progress.bytes_moved.add(chunks.iter().map(|chunk| chunk.zstd.len() as u64).sum());
    settle(&shared, chunks.iter().map(|chunk| chunk.id));
    drop(room);
    Ok(())
}

/// The cache has these now.
fn settle(shared: &Shared, ids: impl Iterator<Item = ChunkId>) {
    let mut chunks = shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
    chunks.extend(ids.map(|id| (id, true)));
    drop(chunks);
    shared.settled.send_replace(());
}
