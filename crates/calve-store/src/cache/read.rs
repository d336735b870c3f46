//! Reading chunks: neighbours in a pack with one request, several requests at once.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::index::chunks::{self, Location};
use super::{Cache, CacheError};
use crate::chunk::{ChunkId, StoredChunk};
use crate::recipe::{RECIPE_BYTES_MAX, Recipe, RecipeId};

/// Chunks that are looked up at once.
const LOOKUP_CHUNKS: usize = 512;
/// Most plain bytes of one request's chunks; a larger chunk (a recipe) is read alone.
const RUN_PLAIN_BYTES: u64 = 2 << 20;
/// Bytes between two chunks that are read and thrown away rather than asked for apart.
const RUN_GAP_BYTES: u64 = 32 << 10;
/// Requests in flight for one stream, and answers that wait: with [`RUN_PLAIN_BYTES`] at most 8 MiB.
const RUNS_AHEAD: usize = 4;
/// Streams that read ahead, of all that one process gives at once: 128 MiB with [`RUNS_AHEAD`], usually a third. A client
/// with 128 connections would else have more in memory than it can take.
pub(super) const EAGER_STREAMS_MAX: usize = 16;
/// Most plain bytes of one request's chunks in further streams, which have one such request in flight.
const LEAN_RUN_PLAIN_BYTES: u64 = 512 << 10;
/// How often a chunk is looked up again when its pack is gone: a collection moves it once.
const MOVES_MAX: usize = 4;

/// Chunks that one request reads.
type Run = Vec<Location>;

impl Cache {
    /// Chunks (and recipes) in this order, in groups.
    pub(super) fn read_chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> BoxStream<'static, Result<Vec<StoredChunk>, CacheError>> {
        let (this, again) = (self.clone(), self.clone());
        let eager = self.0.eager.clone().try_acquire_owned().ok();
        let (ahead, run_bytes) = match eager {
            Some(_) => (RUNS_AHEAD, RUN_PLAIN_BYTES),
            None => (1, LEAN_RUN_PLAIN_BYTES),
        };
        let windows: Vec<Vec<ChunkId>> = ids.chunks(LOOKUP_CHUNKS).map(<[_]>::to_vec).collect();
        stream::iter(windows)
            .then(move |window| {
                let this = this.clone();
                async move {
                    let runs = runs(this.locate(window).await?, run_bytes);
                    Ok::<_, CacheError>(stream::iter(runs.into_iter().map(Ok)))
                }
            })
            .try_flatten()
            .map_ok(move |run| {
                let this = again.clone();
                // Held for as long as there is a stream.
                let _ = &eager;
                async move { this.read_run(run).await }
            })
            .try_buffered(ahead)
            .boxed()
    }

    async fn locate(&self, ids: Vec<ChunkId>) -> Result<Vec<Location>, CacheError> {
        let asked = ids.clone();
        let found = self.0.index.read(move |index| chunks::locate(index, &asked)).await?;
        let found = found.into_iter().zip(ids);
        found.map(|(found, id)| found.ok_or_else(|| CacheError::Missing(format!("chunk {id}")))).collect()
    }

    async fn read_run(&self, run: Run) -> Result<Vec<StoredChunk>, CacheError> {
        match self.read_located(&run).await {
            Err(error) if error.is_gone() => {
                let mut chunks = Vec::new();
                for location in run {
                    chunks.push(self.read_moved(location.id).await?);
                }
                Ok(chunks)
            }
            result => result,
        }
    }

    /// Reads one chunk whose pack was rewritten between looking it up and reading it.
    async fn read_moved(&self, id: ChunkId) -> Result<StoredChunk, CacheError> {
        let mut tries = 0;
        loop {
            let location = self.locate(vec![id]).await?;
            match self.read_located(&location).await {
                Err(error) if error.is_gone() && tries < MOVES_MAX => tries += 1,
                Err(error) => return Err(error),
                Ok(mut chunks) => return Ok(chunks.remove(0)),
            }
        }
    }

    async fn read_located(&self, run: &[Location]) -> Result<Vec<StoredChunk>, CacheError> {
        let Some(first) = run.first() else { return Ok(Vec::new()) };
        let span = run.iter().map(span).reduce(joined).unwrap_or_default();
        let bytes = self.0.objects.range(&first.object, span.start, span.end - span.start).await?;
        Ok(run.iter().map(|location| stored(location, &bytes, span.start)).collect())
    }

    /// Recipes in this order.
    pub(super) async fn read_recipes(&self, ids: Vec<RecipeId>) -> Result<Vec<Recipe>, CacheError> {
        let groups = self.read_chunks(ids);
        let recipes = groups.and_then(|group| {
            super::blocking(move || group.iter().map(decode_recipe).collect::<Result<Vec<_>, _>>())
        });
        Ok(recipes.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }
}

/// The recipe that a stored chunk holds, checked.
pub(super) fn decode_recipe(chunk: &StoredChunk) -> Result<Recipe, CacheError> {
    let damaged = |message: String| CacheError::damaged(format!("recipe {}", chunk.id), message);
    if chunk.len as usize > RECIPE_BYTES_MAX {
        return Err(damaged(format!("it has {} bytes", chunk.len)));
    }
    let plain = chunk.plain().map_err(|error| damaged(error.message))?;
    Recipe::decode(&plain).map_err(|error| damaged(error.0))
}

/// The chunk at `location`, out of an object's bytes from byte `from`.
pub(super) fn stored(location: &Location, bytes: &Bytes, from: u64) -> StoredChunk {
    let begin = (location.offset - from) as usize;
    let zstd = bytes.slice(begin..begin + location.stored as usize);
    StoredChunk { id: location.id, len: location.plain, zstd }
}

/// The bytes of its object that a chunk takes.
fn span(location: &Location) -> Range<u64> {
    location.offset..location.offset + u64::from(location.stored)
}

fn joined(one: Range<u64>, other: Range<u64>) -> Range<u64> {
    one.start.min(other.start)..one.end.max(other.end)
}

/// Groups neighbours, also where they lie in another order: who pushed them compressed several at once.
fn runs(locations: Vec<Location>, plain_max: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut plain, mut all) = (0, 0..0);
    for location in locations {
        let own = span(&location);
        let joins = runs.last().and_then(|run| run.last()).is_some_and(|last| {
            last.pack == location.pack
                && own.start <= all.end + RUN_GAP_BYTES
                && all.start <= own.end + RUN_GAP_BYTES
                && plain + u64::from(location.plain) <= plain_max
        });
        if joins {
            plain += u64::from(location.plain);
            all = joined(all, own);
            runs.last_mut().expect("there is one to join").push(location);
        } else {
            plain = u64::from(location.plain);
            all = own;
            runs.push(vec![location]);
        }
    }
    runs
}
