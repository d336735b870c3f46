//! The cache as its users see it, in this process.

use async_trait::async_trait;
use bytes::Bytes;
use calve_nix::StorePath;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::mpsc::Receiver;

use super::commit::Check;
use super::index::paths;
use super::recent::{LENT_WAITING_BYTES, UPLOADED_WAITING_BYTES};
use super::write::Origin;
use super::{Cache, CacheError, blocking, manifest, now_ms};
use crate::PathInfo;
use crate::chunk::{ChunkId, StoredChunk};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{ArchivePart, CacheInfo, InProcess, Manifest, Remote, RemoteError};

impl Cache {
    /// The path with this hash part, where the cache has it.
    pub async fn find(&self, hash_part: &str) -> Result<Option<Manifest>, CacheError> {
        let hash_part = hash_part.to_owned();
        let row = self.0.index.read(move |index| paths::get(index, &hash_part)).await?;
        let Some(row) = row.filter(|row| !row.broken) else { return Ok(None) };
        self.note_use(vec![(row.path, row.used_ms)]).await?;
        manifest::decode(&row.manifest).map(Some)
    }

    /// Whether the cache has the path with this hash part; asking is no use of it.
    pub async fn holds(&self, hash_part: &str) -> Result<bool, CacheError> {
        let hash_part = hash_part.to_owned();
        let row = self.0.index.read(move |index| paths::get(index, &hash_part)).await?;
        Ok(row.is_some_and(|row| !row.broken))
    }

    /// Keeps a path with its closure, under a name, until a time (milliseconds since 1970) or until it is unpinned.
    pub async fn pin(&self, name: &str, path: &StorePath, expires_ms: Option<i64>) -> Result<(), CacheError> {
        let (name, path) = (name.to_owned(), path.clone());
        self.0
            .index
            .write(move |index| {
                if paths::get(index, path.hash_part())?.is_none() {
                    return Err(super::index::WriteError::Refused(CacheError::Missing(path.to_string())));
                }
                let mut statement =
                    index.prepare_cached("INSERT OR REPLACE INTO pins VALUES (?1, ?2, ?3)")?;
                statement.execute(rusqlite::params![name, path.hash_part(), expires_ms])?;
                Ok(())
            })
            .await
    }

    /// Removes every pin of this name; absence is success.
    pub async fn unpin(&self, name: &str) -> Result<(), CacheError> {
        let name = name.to_owned();
        let change = move |index: &rusqlite::Transaction<'_>| {
            Ok(index.execute("DELETE FROM pins WHERE name = ?1", [name]).map(drop)?)
        };
        self.0.index.write(change).await
    }

    /// Every pin that has not expired: its name, and what it keeps; sorted.
    pub async fn pins(&self) -> Result<Vec<(String, StorePath)>, CacheError> {
        let read = |index: &rusqlite::Connection| {
            let mut statement = index.prepare_cached(
                "SELECT name, manifest FROM pins JOIN paths USING (hash_part)
                 WHERE expires_ms IS NULL OR expires_ms > ?1 ORDER BY name, hash_part",
            )?;
            let rows = statement.query_map([now_ms()], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let pins: Vec<(String, Vec<u8>)> = self.0.index.read(read).await?;
        pins.into_iter().map(|(name, bytes)| Ok((name, manifest::decode(&bytes)?.info.path))).collect()
    }

    /// The names of all pins, each once, sorted.
    pub async fn pin_names(&self) -> Result<Vec<String>, CacheError> {
        let read = |index: &rusqlite::Connection| {
            let mut statement = index.prepare_cached("SELECT DISTINCT name FROM pins ORDER BY name")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        self.0.index.read(read).await
    }

    async fn note_use(&self, rows: Vec<(i64, i64)>) -> Result<(), CacheError> {
        let since_ms = self.touch_since_ms();
        let stale: Vec<_> = rows.into_iter().filter(|(_, used_ms)| *used_ms < since_ms).collect();
        if stale.is_empty() {
            return Ok(());
        }
        let change = move |index: &rusqlite::Transaction<'_>| {
            let now_ms = now_ms();
            for (path, _) in stale {
                paths::touch(index, path, now_ms, since_ms)?;
            }
            Ok(())
        };
        self.0.index.write(change).await
    }

    async fn lacking(&self, wanted: &[StorePath]) -> Result<Vec<StorePath>, CacheError> {
        let wanted = wanted.to_vec();
        let read = move |index: &rusqlite::Connection| {
            let (mut missing, mut found) = (Vec::new(), Vec::new());
            for path in wanted {
                match paths::get(index, path.hash_part())? {
                    Some(row) if !row.broken => found.push((row.path, row.used_ms)),
                    _ => missing.push(path),
                }
            }
            Ok((missing, found))
        };
        let (missing, found) = self.0.index.read(read).await?;
        self.note_use(found).await?;
        Ok(missing)
    }

    async fn closure_of(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, CacheError> {
        let roots = roots.to_vec();
        let read = move |index: &rusqlite::Connection| {
            let mut rows = Vec::new();
            let mut seen = std::collections::HashSet::new();
            for root in roots {
                let Some(row) = paths::get(index, root.hash_part())? else { return Ok(Err(root)) };
                for path in paths::closure(index, row.path)? {
                    if seen.insert(path) {
                        rows.extend(paths::get_number(index, path)?);
                    }
                }
            }
            Ok(Ok(rows))
        };
        let rows = self.0.index.read(read).await?;
        let rows = rows.map_err(|path| CacheError::Missing(path.to_string()))?;
        self.note_use(rows.iter().map(|row| (row.path, row.used_ms)).collect()).await?;
        let mut manifests = Vec::with_capacity(rows.len());
        for row in rows {
            let manifest = manifest::decode(&row.manifest)?;
            if row.broken {
                return Err(CacheError::Missing(format!("{}: chunks of it are lost", manifest.info.path)));
            }
            manifests.push(manifest);
        }
        Ok(manifests)
    }

    fn told(&self) -> impl Fn(CacheError) -> RemoteError + Clone + Send + Sync + use<> {
        let this = self.clone();
        move |error| error.into_remote(&this.0.called)
    }
}

#[async_trait]
impl Remote for Cache {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        Ok(CacheInfo { keys: self.public_keys(), priority: self.0.priority })
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.lacking(paths).await.map_err(self.told())
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        let (this, chunks) = (self.clone(), chunks.to_vec());
        blocking(move || this.missing_now(&chunks)).await.map_err(self.told())
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.store_chunks(chunks, Origin::Elsewhere).await.map_err(self.told())?;
        self.0.recent.taken_in_time(UPLOADED_WAITING_BYTES).await;
        Ok(())
    }

    fn in_process(&self) -> Option<&dyn InProcess> {
        Some(self)
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.commit_paths(paths, recipes, Check::Archives).await.map_err(self.told())
    }

    async fn hash_ahead(&self, info: PathInfo, mut parts: Receiver<ArchivePart>) -> Result<(), RemoteError> {
        let mut ahead = self.hash_ahead_of(info).map_err(self.told())?;
        while let Some(part) = ahead.meanwhile(parts.recv()).await.map_err(self.told())? {
            ahead.take(part).await.map_err(self.told())?;
        }
        ahead.finish().await.map_err(self.told())
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.closure_of(roots).await.map_err(self.told())
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.read_recipes(ids.to_vec()).await.map_err(self.told())
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        let groups = self.read_chunks(ids).map_err(self.told());
        Ok(groups.map_ok(|group| stream::iter(group.into_iter().map(Ok))).try_flatten().boxed())
    }
}

#[async_trait]
impl InProcess for Cache {
    async fn lend(&self, id: ChunkId, plain: Bytes) {
        self.0.recent.put(id, plain);
        self.0.recent.taken_in_time(LENT_WAITING_BYTES).await;
    }

    async fn put_made(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.store_chunks(chunks, Origin::Here).await.map_err(self.told())
    }
}
