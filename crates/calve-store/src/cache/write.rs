//! Storing chunks: into packs, then into the index.

use std::collections::HashSet;

use super::index::chunks;
use super::pack::{Kind, PackWriter, Placed};
use super::{Cache, CacheError, blocking, now_ms};
use crate::chunk::{CHUNK_MAX, CHUNK_STORED_MAX, ChunkId, StoredChunk};

/// A pack that was written, before a row names it.
#[derive(Debug)]
pub(super) struct Written {
    pub name: String,
    pub bytes: u64,
    pub entries: Vec<Placed>,
}

/// Where chunks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From somebody who may say anything: one wrong chunk under a right id would make every later upload of it fail.
    Elsewhere,
    /// This process compressed them, from bytes with these ids.
    Here,
}

impl Cache {
    /// Stores chunks that the cache does not have yet; those from elsewhere are checked first.
    pub(super) async fn store_chunks(
        &self,
        chunks: Vec<StoredChunk>,
        origin: Origin,
    ) -> Result<(), CacheError> {
        let this = self.clone();
        let missing = blocking(move || this.missing_and_sound(chunks, origin)).await?;
        let mut pack = PackWriter::new();
        for chunk in missing {
            pack.push(Kind::Chunk, &chunk);
            if pack.is_full() {
                self.store_pack(std::mem::replace(&mut pack, PackWriter::new())).await?;
            }
        }
        self.store_pack(pack).await
    }

    fn missing_and_sound(
        &self,
        chunks: Vec<StoredChunk>,
        origin: Origin,
    ) -> Result<Vec<StoredChunk>, CacheError> {
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        let missing: HashSet<_> = self.missing_now(&ids)?.into_iter().collect();
        let mut taken = HashSet::new();
        let mut kept = Vec::new();
        for chunk in chunks {
            if !missing.contains(&chunk.id) || !taken.insert(chunk.id) {
                continue;
            }
            if chunk.len > CHUNK_MAX || chunk.zstd.len() > CHUNK_STORED_MAX as usize {
                return Err(CacheError::damaged(
                    format!("chunk {}", chunk.id),
                    "it is larger than chunks are",
                ));
            }
            if origin == Origin::Elsewhere {
                self.0.recent.put(chunk.id, chunk.check()?.into());
            }
            kept.push(chunk);
        }
        Ok(kept)
    }

    /// Which chunks are not there, in the same order; those that are stay for the grace.
    pub(super) fn missing_now(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, CacheError> {
        let (now_ms, since_ms) = (now_ms(), self.touch_since_ms());
        // Most are new or were needed of late: nothing is to be written, and no other writer is waited for.
        let touched = self.0.index.read_warm(|index| {
            ids.iter().map(|id| chunks::touched_ms(index, id)).collect::<rusqlite::Result<Vec<_>>>()
        })?;
        if touched.iter().flatten().all(|touched_ms| *touched_ms >= since_ms) {
            let missing = ids.iter().zip(touched).filter(|(_, touched_ms)| touched_ms.is_none());
            return Ok(missing.map(|(id, _)| *id).collect());
        }
        self.0.index.write_now(|index| {
            let mut missing = Vec::new();
            for id in ids {
                if !chunks::touch_since(index, id, now_ms, since_ms)? {
                    missing.push(*id);
                }
            }
            Ok(missing)
        })
    }

    /// Writes a pack of chunks and its rows; an empty one is nothing.
    pub(super) async fn store_pack(&self, pack: PackWriter) -> Result<(), CacheError> {
        if pack.is_empty() {
            return Ok(());
        }
        let written = self.write_pack(pack).await?;
        self.0
            .index
            .write(move |index| {
                let now_ms = now_ms();
                let pack =
                    chunks::insert_pack(index, &written.name, written.bytes, &written.entries, now_ms)?;
                Ok(chunks::insert_chunks(index, pack, &written.entries, now_ms)?)
            })
            .await
    }

    /// Writes a pack's object.
    pub(super) async fn write_pack(&self, pack: PackWriter) -> Result<Written, CacheError> {
        let (bytes, entries) = pack.finish();
        let name = new_name()?;
        let size = bytes.content_length() as u64;
        self.0.objects.put(&name, bytes).await?;
        Ok(Written { name, bytes: size, entries })
    }
}

/// A name that no object ever had: were it made from the contents, a collection could remove an abandoned object just
/// when somebody writes the same again.
fn new_name() -> Result<String, CacheError> {
    let mut random = [0; 16];
    super::keys::random(&mut random)?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("packs/{}/{name}", &name[..2]))
}

impl StoredChunk {
    /// Whether its bytes are what its id says.
    pub(super) fn check(&self) -> Result<Vec<u8>, CacheError> {
        self.plain().map_err(|error| CacheError::damaged(format!("chunk {}", self.id), error.message))
    }
}
