//! Caches whose process runs on the host of whoever asks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_nix::StorePath;
use futures_util::stream::BoxStream;
use tokio::time::timeout;

use crate::HttpRemote;
use crate::cache::Cache;
use crate::chunk::{ChunkId, StoredChunk};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{CacheInfo, Manifest, Remote, RemoteError};

/// How long a cache may take to say where it lies: one that is too busy is asked everything else as well.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// For a push: the cache itself, where its directory is in the hands of whoever asks, or else the way to it that is given. On one
/// host nothing has to be sent, and nothing to be checked that was worked out here.
pub async fn at_hand_to_push(remote: HttpRemote) -> Arc<dyn Remote> {
    match at_hand(&remote, true).await {
        Some(cache) => Arc::new(cache),
        None => Arc::new(remote),
    }
}

/// For a pull, likewise: of the cache's process is asked only what it would have to get from caches behind it.
pub async fn at_hand_to_pull(remote: HttpRemote) -> Arc<dyn Remote> {
    match at_hand(&remote, false).await {
        Some(here) => Arc::new(AtHand { here, process: remote }),
        None => Arc::new(remote),
    }
}

async fn at_hand(remote: &HttpRemote, pushes: bool) -> Option<Cache> {
    let directory = timeout(TOLD_WITHIN, remote.directory(&Cache::asker(pushes)?)).await.ok()??;
    Cache::open_at(&directory, remote.shown()).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the cache on this host is asked, as its directory cannot be used");
        None
    })
}

/// A cache that is read where it lies.
struct AtHand {
    here: Cache,
    process: HttpRemote,
}

#[async_trait]
impl Remote for AtHand {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        self.process.info().await
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.here.missing_paths(paths).await
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.here.missing_chunks(chunks).await
    }

    /// Its process knows who may.
    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.process.put_chunks(chunks).await
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.process.commit(paths, recipes).await
    }

    /// What is not here its process may get, and has it here then.
    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        match self.here.closure(roots).await {
            Err(RemoteError::Missing { .. }) => self.process.closure(roots).await,
            told => told,
        }
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.here.recipes(ids).await
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        self.here.chunks(ids).await
    }
}
