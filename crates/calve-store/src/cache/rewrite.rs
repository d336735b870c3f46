//! Moving what is left of packs into new ones.

use bytes::Bytes;

use super::index::chunks::{self, Location, Pack};
use super::index::paths::{self, PathRow};
use super::pack::{Kind, PackWriter};
use super::write::Written;
use super::{Cache, CacheError, blocking, now_ms, read};
use crate::chunk::{ChunkId, StoredChunk};
use crate::cut::CHUNK_LEVEL;

/// Things of one pack that moved.
pub(super) struct Moved {
    pub from: i64,
    pub manifests: Vec<PathRow>,
}

impl Cache {
    /// Writes what still lies in these packs, together at most about as much as a pack holds, into one new pack, and
    /// removes them. A pack with damage stays as it is; `verify` names it.
    pub(super) async fn merge_packs(&self, packs: &[Pack]) -> Result<Vec<Pack>, CacheError> {
        let mut writer = PackWriter::new();
        let (mut moved, mut sources) = (Vec::new(), Vec::new());
        for pack in packs {
            let number = pack.pack;
            let rows = move |index: &rusqlite::Connection| {
                let chunks: Vec<_> =
                    chunks::in_pack(index, number)?.into_iter().map(|(location, _)| location).collect();
                Ok((chunks, paths::in_pack(index, number)?))
            };
            let (locations, manifests) = self.0.index.read(rows).await?;
            let Ok(frames) = self.sound_frames(pack, locations).await else { continue };
            for (kind, chunk) in &frames {
                writer.push(*kind, chunk);
            }
            for row in &manifests {
                writer.push(Kind::Manifest, &manifest_frame(&row.manifest)?);
            }
            moved.push(Moved { from: number, manifests });
            sources.push(pack.clone());
        }
        self.replace_packs(writer, moved, sources).await
    }

    /// The chunks of a pack, each checked.
    async fn sound_frames(
        &self,
        pack: &Pack,
        locations: Vec<Location>,
    ) -> Result<Vec<(Kind, StoredChunk)>, CacheError> {
        if locations.is_empty() {
            return Ok(Vec::new());
        }
        let object = self.0.objects.get(&pack.name).await?;
        blocking(move || {
            let mut frames = Vec::new();
            for location in locations {
                if location.offset + u64::from(location.stored) > object.len() as u64 {
                    return Err(CacheError::damaged(location.id, "its pack is too short"));
                }
                let mut chunk = read::stored(&location, &object, 0);
                chunk.check()?;
                // A copy, as of a large object often little is left, and many are merged.
                chunk.zstd = Bytes::copy_from_slice(&chunk.zstd);
                frames.push((location.kind, chunk));
            }
            Ok(frames)
        })
        .await
    }

    /// Puts a new pack in the place of others; gives those that are gone now.
    pub(super) async fn replace_packs(
        &self,
        writer: PackWriter,
        moved: Vec<Moved>,
        sources: Vec<Pack>,
    ) -> Result<Vec<Pack>, CacheError> {
        let written = if writer.is_empty() { None } else { Some(self.write_pack(writer).await?) };
        let gone = self
            .0
            .index
            .write(move |index| {
                if let Some(Written { name, bytes, entries }) = &written {
                    let to = chunks::insert_pack(index, name, *bytes, entries, now_ms())?;
                    for Moved { from, manifests } in &moved {
                        chunks::move_chunks(index, *from, to, entries)?;
                        for row in manifests {
                            move_manifest(index, row, *from, to)?;
                        }
                    }
                }
                let mut gone = Vec::new();
                for pack in sources {
                    if chunks::remove_empty_pack(index, pack.pack)? {
                        gone.push(pack);
                    }
                }
                Ok(gone)
            })
            .await?;
        for pack in &gone {
            self.0.objects.delete(&pack.name).await?;
        }
        Ok(gone)
    }
}

/// A manifest as a pack holds it.
pub(super) fn manifest_frame(plain: &[u8]) -> Result<StoredChunk, CacheError> {
    StoredChunk::compress(ChunkId::of(plain), plain, CHUNK_LEVEL)
        .map_err(|error| CacheError::damaged("a manifest", error))
}

fn move_manifest(index: &rusqlite::Connection, row: &PathRow, from: i64, to: i64) -> rusqlite::Result<()> {
    index
        .prepare_cached("UPDATE paths SET pack = ?3 WHERE path = ?1 AND pack = ?2 AND manifest = ?4")?
        .execute(rusqlite::params![row.path, from, to, row.manifest])
        .map(drop)
}
