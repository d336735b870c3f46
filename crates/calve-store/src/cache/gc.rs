//! Garbage collection.
//!
//! ```text
//! paths that stay (pins, last use, room) with their closures ─▶ their chunks ─▶ rows of the rest go ─▶ packs shrink
//! ```
//! Safe beside uploads and commits of any process: what was touched within the grace stays, whoever relies on a chunk
//! touches it in the same transaction, and rows are removed only if still untouched. Readers that find a pack gone look
//! their chunks up again.

mod sweep;

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::time::Duration;

use super::index::paths::{self, PathRow};
use super::index::{WriteError, chunks};
use super::{Cache, CacheError, manifest, now_ms, reserve};
use crate::chunk::ChunkId;

/// Paths whose recipes are read at once.
const RECIPES_AT_ONCE: usize = 256;

/// What stays besides pins and what was used within the grace.
#[derive(Debug, Clone, Default)]
pub struct GcPolicy {
    /// Paths used within this time stay; all, where it is not given.
    pub max_age: Option<Duration>,
    /// Paths go, the least recently used first, until chunks take at most this many bytes.
    pub max_bytes: Option<u64>,
    /// Only says what would go.
    pub dry_run: bool,
    /// Another grace than the cache's.
    pub grace: Option<Duration>,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Paths that stay.
    pub paths_kept: u64,
    /// As [`Verified::paths_restored`](super::Verified::paths_restored).
    pub paths_restored: u64,
    /// Paths that are gone.
    pub paths_removed: u64,
    /// Chunks and recipes that are gone.
    pub chunks_removed: u64,
    /// Their bytes as stored.
    pub chunk_bytes_removed: u64,
    /// Packs that are gone, also those whose rest moved.
    pub packs_removed: u64,
    /// Objects of broken off uploads that are gone.
    pub abandoned_removed: u64,
}

/// Times of one collection, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Times {
    now_ms: i64,
    /// What was touched or used since then stays.
    spared_ms: i64,
}

/// What stays.
#[derive(Default)]
struct Live {
    paths: HashSet<i64>,
    /// The first eight bytes of ids: with a hundred million chunks, one in 10^11 stays by mistake, and memory is a quarter.
    chunks: HashSet<u64>,
    bytes: u64,
}

/// What one root added to that.
#[derive(Default)]
struct Added {
    paths: Vec<i64>,
    chunks: Vec<u64>,
    bytes: u64,
}

impl Live {
    fn take_back(&mut self, added: Added) {
        for path in added.paths {
            self.paths.remove(&path);
        }
        for chunk in added.chunks {
            self.chunks.remove(&chunk);
        }
        self.bytes -= added.bytes;
    }
}

fn short(id: &ChunkId) -> u64 {
    u64::from_le_bytes(*id.0.first_chunk().expect("ids have 32 bytes"))
}

impl Cache {
    /// Removes what nothing needs any more. One collection at a time runs in a cache.
    pub async fn collect(&self, policy: &GcPolicy) -> Result<Collected, CacheError> {
        let _lock = self.lock("gc.lock", "collects garbage")?;
        if policy.dry_run {
            return self.collect_locked(policy).await;
        }
        reserve::release(&self.0.dir);
        let collected = self.collect_locked(policy).await;
        reserve::keep(&self.0.dir);
        collected
    }

    async fn collect_locked(&self, policy: &GcPolicy) -> Result<Collected, CacheError> {
        // What a damaged index does not know any more is no garbage.
        let paths_restored = self.restore_lost().await?;
        // As a writer: whoever stamped an earlier time has committed, so that `mark` sees it, and whoever comes later is
        // spared. Taken beside a commit in flight, its chunks would look untouched though nothing has marked them.
        let now_ms = self.0.index.write(|_| Ok::<_, WriteError>(now_ms())).await?;
        let grace = policy.grace.unwrap_or(self.0.grace);
        let times = Times { now_ms, spared_ms: now_ms.saturating_sub(millis(grace)) };
        let (live, dead) = self.mark(policy, times).await?;
        let paths_kept = live.paths.len() as u64;
        let mut done = Collected { paths_kept, paths_restored, ..Collected::default() };
        self.sweep_paths(dead, times, policy.dry_run, &mut done).await?;
        self.sweep_chunks(&live, times, policy.dry_run, &mut done).await?;
        if !policy.dry_run {
            self.shrink_packs(times, &mut done).await?;
            self.sweep_abandoned(times, &mut done).await?;
            self.sweep_uploads(times).await?;
        }
        Ok(done)
    }

    /// A lock among all processes that have this cache open, held while the file is.
    pub(super) fn lock(&self, name: &str, what: &'static str) -> Result<File, CacheError> {
        let path = self.0.dir.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(CacheError::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(CacheError::Busy(what)),
            Err(TryLockError::Error(error)) => Err(CacheError::io("lock", &path)(error)),
        }
    }

    /// Tells what stays, and the paths that do not, the least recently used first.
    async fn mark(&self, policy: &GcPolicy, times: Times) -> Result<(Live, Vec<i64>), CacheError> {
        let all = self.0.index.read(move |index| paths::by_use(index, times.now_ms)).await?;
        let old_ms = policy.max_age.map(|age| times.now_ms.saturating_sub(millis(age)));
        let mut live = Live::default();
        let mut optional = Vec::new();
        for &(path, used_ms, pinned) in &all {
            if pinned || used_ms >= times.spared_ms {
                self.keep(&mut live, vec![path]).await?;
            } else if old_ms.is_none_or(|old_ms| used_ms >= old_ms) {
                optional.push(path);
            }
        }
        for path in optional {
            if policy.max_bytes.is_some_and(|max| live.bytes > max) {
                break;
            }
            let added = self.keep(&mut live, vec![path]).await?;
            if policy.max_bytes.is_some_and(|max| live.bytes > max && added.bytes > 0) {
                live.take_back(added);
                break;
            }
        }
        let mut dead: Vec<_> =
            all.into_iter().map(|(path, ..)| path).filter(|path| !live.paths.contains(path)).collect();
        dead.reverse();
        Ok((live, dead))
    }

    /// Marks paths with their closures and chunks; gives what was not marked before.
    async fn keep(&self, live: &mut Live, roots: Vec<i64>) -> Result<Added, CacheError> {
        let mut open: Vec<_> = roots.into_iter().filter(|path| live.paths.insert(*path)).collect();
        let mut added = Added { paths: open.clone(), ..Added::default() };
        while !open.is_empty() {
            let group = open.split_off(open.len().saturating_sub(RECIPES_AT_ONCE));
            let read = move |index: &rusqlite::Connection| {
                let (mut rows, mut references) = (Vec::new(), Vec::new());
                for path in group {
                    rows.extend(paths::get_number(index, path)?);
                    references.extend(paths::references(index, path)?);
                }
                Ok((rows, references))
            };
            let (rows, references): (Vec<PathRow>, Vec<i64>) = self.0.index.read(read).await?;
            self.keep_chunks(live, rows, &mut added).await?;
            for path in references {
                if live.paths.insert(path) {
                    open.push(path);
                    added.paths.push(path);
                }
            }
        }
        Ok(added)
    }

    async fn keep_chunks(
        &self,
        live: &mut Live,
        rows: Vec<PathRow>,
        added: &mut Added,
    ) -> Result<(), CacheError> {
        // Paths known as broken may lack their recipe; what is left of them stays through the recipes of others only.
        let mut recipes = Vec::new();
        for row in rows.into_iter().filter(|row| !row.broken) {
            // A damaged manifest is for `verify` to name.
            let proof = manifest::decode(&row.manifest).ok().and_then(|manifest| manifest.lazy);
            let listing = proof.map(|proof| proof.listing);
            recipes.extend([row.recipe].into_iter().chain(listing));
        }
        recipes.retain(|id| !live.chunks.contains(&short(id)));
        for ids in recipes.chunks(RECIPES_AT_ONCE) {
            let read = self.read_recipes(ids.to_vec()).await?;
            let used = read.iter().flat_map(|recipe| recipe.pieces.iter().map(|piece| piece.id));
            let new: Vec<_> =
                used.chain(ids.iter().copied()).filter(|id| live.chunks.insert(short(id))).collect();
            added.chunks.extend(new.iter().map(short));
            let locate = move |index: &rusqlite::Connection| chunks::locate(index, &new);
            let found = self.0.index.read(locate).await?;
            let bytes: u64 = found.iter().flatten().map(|chunk| u64::from(chunk.stored)).sum();
            live.bytes += bytes;
            added.bytes += bytes;
        }
        Ok(())
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
