//! Removing what was not marked.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt;

use super::{Collected, Live, Times, short};
use crate::cache::index::chunks::{self, Pack};
use crate::cache::index::{WriteError, paths};
use crate::cache::{Cache, CacheError, PACK_BYTES};

/// Rows that one transaction removes: other writers wait no longer than some milliseconds.
const ROWS_AT_ONCE: usize = 2000;
/// A pack of which less than this part is still needed is written anew.
pub const PACK_LIVE_PERCENT: u64 = 50;
/// Packs below this size are put together: each is a request of its own when it is read.
const PACK_SMALL_BYTES: u64 = 1 << 20;
/// How long an object or upload that no row names stays, however short the grace: somebody may be about to name it.
const ABANDONED_AGE: Duration = Duration::from_secs(3600);

impl Cache {
    /// Removes dead paths, those first that nothing refers to.
    pub(super) async fn sweep_paths(
        &self,
        dead: Vec<i64>,
        times: Times,
        dry_run: bool,
        done: &mut Collected,
    ) -> Result<(), CacheError> {
        if dry_run {
            done.paths_removed = dead.len() as u64;
            return Ok(());
        }
        let mut left = dead;
        loop {
            let (mut kept, before) = (Vec::new(), left.len());
            for group in left.chunks(ROWS_AT_ONCE) {
                let group = group.to_vec();
                let remove = move |index: &rusqlite::Transaction<'_>| {
                    let mut kept = Vec::new();
                    for path in group {
                        if !paths::remove_unused(index, path, times.spared_ms)? {
                            kept.push(path);
                        }
                    }
                    Ok::<_, WriteError>(kept)
                };
                kept.extend(self.0.index.write(remove).await?);
            }
            done.paths_removed += (before - kept.len()) as u64;
            // What is left was used or referred to meanwhile, or refers only to what was just removed.
            if kept.is_empty() || kept.len() == before {
                done.paths_kept += kept.len() as u64;
                return Ok(());
            }
            left = kept;
        }
    }

    /// Removes the rows of chunks that nothing needs.
    pub(super) async fn sweep_chunks(
        &self,
        live: &Live,
        times: Times,
        dry_run: bool,
        done: &mut Collected,
    ) -> Result<(), CacheError> {
        for pack in self.0.index.read(chunks::packs).await? {
            let rows = self.0.index.read(move |index| chunks::in_pack(index, pack.pack)).await?;
            let dead = rows.into_iter().filter(|(chunk, touched_ms)| {
                *touched_ms < times.spared_ms && !live.chunks.contains(&short(&chunk.id))
            });
            let dead: Vec<_> = dead.map(|(chunk, _)| (chunk.id, u64::from(chunk.stored))).collect();
            for group in dead.chunks(ROWS_AT_ONCE) {
                let group = group.to_vec();
                let remove = move |index: &rusqlite::Transaction<'_>| {
                    let mut removed = (0, 0);
                    for (id, stored) in group {
                        if dry_run || chunks::remove_untouched(index, &id, times.spared_ms)? {
                            removed = (removed.0 + 1, removed.1 + stored);
                        }
                    }
                    Ok::<_, WriteError>(removed)
                };
                let (chunks, bytes) = self.0.index.write(remove).await?;
                done.chunks_removed += chunks;
                done.chunk_bytes_removed += bytes;
            }
        }
        Ok(())
    }

    /// Writes packs anew that are mostly dead, small, or hold manifests of paths that are gone: those must not come back
    /// when the index is built anew.
    pub(super) async fn shrink_packs(&self, times: Times, done: &mut Collected) -> Result<(), CacheError> {
        let (mut shrunk, mut small) = (VecDeque::new(), VecDeque::new());
        for pack in self.0.index.read(chunks::packs).await? {
            let number = pack.pack;
            let read = move |index: &rusqlite::Connection| {
                let chunks = chunks::in_pack(index, number)?;
                Ok((chunks, paths::in_pack(index, number)?.len() as u64))
            };
            let (rows, manifests) = self.0.index.read(read).await?;
            let live: u64 = rows.iter().map(|(chunk, _)| u64::from(chunk.stored)).sum();
            // Manifests of paths that are gone go at once: what a pack holds beyond them, the index has lost.
            let forgotten = manifests < pack.manifests;
            if pack.made_ms >= times.spared_ms && !forgotten {
                continue;
            }
            if rows.is_empty() && manifests == 0 {
                // Nothing has to be written for it: that makes room for what has to.
                done.packs_removed += self.merge_packs(&[pack]).await?.len() as u64;
                continue;
            }
            let mostly_dead = manifests == 0 && live * 100 < pack.bytes * PACK_LIVE_PERCENT;
            if mostly_dead || forgotten {
                shrunk.push_back((live, pack));
            } else if pack.bytes < PACK_SMALL_BYTES {
                small.push_back((live, pack));
            }
        }
        // One small pack alone would only be written again and again.
        if small.len() > 1 {
            shrunk.append(&mut small);
        }
        while let Some((first_live, first)) = shrunk.pop_front() {
            let (mut bytes, mut group): (u64, Vec<Pack>) = (first_live, vec![first]);
            while let Some((live, pack)) = shrunk.pop_front_if(|(live, _)| bytes + *live <= PACK_BYTES as u64)
            {
                bytes += live;
                group.push(pack);
            }
            match self.merge_packs(&group).await {
                // They stay as they are: what is gone already made room.
                Err(error) if error.is_disk_full() => {
                    tracing::warn!("packs were not put together: {}", crate::chain(&error));
                    return Ok(());
                }
                merged => done.packs_removed += merged?.len() as u64,
            }
        }
        Ok(())
    }

    /// Removes objects that no row names: of writers that died in between.
    pub(super) async fn sweep_abandoned(&self, times: Times, done: &mut Collected) -> Result<(), CacheError> {
        let before_ms = abandoned_ms(times);
        let mut listed = self.0.objects.list("packs");
        while let Some(object) = listed.try_next().await? {
            if object.made_ms >= before_ms {
                continue;
            }
            let name = object.name.clone();
            if !self.0.index.read(move |index| chunks::has_pack(index, &name)).await? {
                self.0.objects.delete(&object.name).await?;
                done.abandoned_removed += 1;
            }
        }
        let (objects, before) = (self.0.objects.clone(), time(before_ms));
        done.abandoned_removed += crate::cache::blocking(move || objects.remove_halves(before)).await?;
        Ok(())
    }

    /// Removes uploads that no narinfo followed, and the names of old ones.
    pub(super) async fn sweep_uploads(&self, times: Times) -> Result<(), CacheError> {
        let forget = move |index: &rusqlite::Transaction<'_>| {
            let forgotten = index.execute("DELETE FROM uploads WHERE made_ms < ?1", [times.spared_ms]);
            index.execute("DELETE FROM pins WHERE expires_ms <= ?1", [times.now_ms])?;
            Ok(forgotten.map(drop)?)
        };
        self.0.index.write(forget).await?;
        let dir = self.0.dir.join("uploads");
        crate::cache::blocking(move || {
            let Ok(files) = std::fs::read_dir(&dir) else { return Ok(()) };
            let spared = time(abandoned_ms(times));
            for file in files.flatten() {
                let old =
                    file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|time| time < spared);
                if old {
                    let path = file.path();
                    std::fs::remove_file(&path).map_err(CacheError::io("remove", &path))?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn abandoned_ms(times: Times) -> i64 {
    times.spared_ms.min(times.now_ms - ABANDONED_AGE.as_millis() as i64)
}

fn time(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
}
