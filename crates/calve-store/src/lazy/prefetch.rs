//! The rest of a mounted closure, pulled as any closure is, while nothing is read: what was read does not come again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use calve_nix::StorePath;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::Semaphore;

use super::chunks::Chunks;
use crate::Store;
use crate::chunk::{ChunkId, StoredChunk};
use crate::progress::Progress;
use crate::pull::{PullOptions, Source, pull, stalled, timely};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{CacheInfo, Manifest, Remote, RemoteError};

/// How long nothing may have been read before a request for the rest is sent.
const QUIET: Duration = Duration::from_millis(500);
/// Requests for the rest at once: what is read next waits behind them on the line.
const REQUESTS_MAX: usize = 2;
/// How long a pull waits for what it asked for: as long as reads go on, it gets nothing.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Wait before a pull that failed is tried again; it doubles each time up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(5);
/// The longest such wait.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// zstd's level for what only passes from one part of this process to another.
const PASSING_LEVEL: i32 = 1;

/// Pulls all of `paths` into the private store.
pub async fn all(
    chunks: &Chunks,
    sources: &[Source],
    store: Arc<Store>,
    paths: &[StorePath],
    options: PullOptions,
) {
    let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
    let timeout = options.stall_timeout;
    let options = PullOptions { stall_timeout: PATIENCE, ..options };
    let behind = |source: &Source| {
        let (chunks, source, requests) = (chunks.clone(), source.clone(), requests.clone());
        Source { name: source.name.clone(), remote: Arc::new(Behind { chunks, source, requests, timeout }) }
    };
    let sources: Vec<_> = sources.iter().map(behind).collect();
    let mut pause = PAUSE;
    loop {
        chunks.quiet(QUIET).await;
        let progress = Arc::new(Progress::default());
        match pull(store.clone(), &sources, paths, options.clone(), progress).await {
            Ok(pulled) => return tracing::info!(paths = pulled.len(), "all of the closure is here"),
            Err(error) => tracing::warn!("the rest of the closure does not come: {}", crate::chain(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A cache that is asked only for what is not here, and only while nothing is read.
struct Behind {
    chunks: Chunks,
    source: Source,
    requests: Arc<Semaphore>,
    timeout: Duration,
}

#[async_trait]
impl Remote for Behind {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        self.source.remote.info().await
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.source.remote.missing_paths(paths).await
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.source.remote.missing_chunks(chunks).await
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.source.remote.put_chunks(chunks).await
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.source.remote.commit(paths, recipes).await
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        timely(&self.source, self.timeout, self.source.remote.closure(roots)).await
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        timely(&self.source, self.timeout, self.source.remote.recipes(ids)).await
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        let turn = self.requests.clone().acquire_owned().await.expect("never closed");
        self.chunks.quiet(QUIET).await;
        let here: Vec<_> = ids.iter().map(|id| (*id, self.chunks.here(id))).collect();
        let missing: Vec<_> = here.iter().filter(|(_, bytes)| bytes.is_none()).map(|(id, _)| *id).collect();
        let fetched = match missing.is_empty() {
            true => stream::empty().boxed(),
            false => timely(&self.source, self.timeout, self.source.remote.chunks(missing)).await?,
        };
        let (source, timeout) = (self.source.clone(), self.timeout);
        let state = (here.into_iter(), fetched, source, turn);
        let chunks = stream::unfold(state, move |(mut here, mut fetched, source, turn)| async move {
            let chunk = match here.next()? {
                (id, Some(bytes)) => passed_on(id, &bytes),
                (id, None) => match tokio::time::timeout(timeout, fetched.next()).await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => Err(damaged(id, "it did not come".to_owned())),
                    Err(_) => Err(stalled(&source, timeout)),
                },
            };
            Some((chunk, (here, fetched, source, turn)))
        });
        Ok(chunks.boxed())
    }
}

fn passed_on(id: ChunkId, plain: &Bytes) -> Result<StoredChunk, RemoteError> {
    StoredChunk::compress(id, plain, PASSING_LEVEL).map_err(|error| damaged(id, error.to_string()))
}

fn damaged(id: ChunkId, message: String) -> RemoteError {
    RemoteError::Damaged { what: format!("chunk {id}"), message }
}
