//! Chunks made plain, with one decompressor a thread: making one takes longer than most chunks do.

use std::cell::RefCell;

use crate::chunk::{ChunkId, StoredChunk};
use crate::cut::ChunkError;

thread_local! {
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The chunk's plain bytes, checked against its length and id.
pub fn plain(chunk: &StoredChunk) -> Result<Vec<u8>, ChunkError> {
    let plain = unchecked(chunk)?;
    let found = ChunkId::of(&plain);
    let message = || format!("its bytes have the id {found}");
    if found == chunk.id { Ok(plain) } else { Err(ChunkError { id: chunk.id, message: message() }) }
}

/// The chunk's plain bytes, of the right length and nothing more: for who checks a hash over them anyway.
pub fn unchecked(chunk: &StoredChunk) -> Result<Vec<u8>, ChunkError> {
    let damaged = |message: String| ChunkError { id: chunk.id, message };
    let plain = DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress(&chunk.zstd, chunk.len as usize)
    });
    let plain = plain.map_err(|error| damaged(error.to_string()))?;
    if plain.len() != chunk.len as usize {
        return Err(damaged(format!("it has {} bytes instead of {}", plain.len(), chunk.len)));
    }
    Ok(plain)
}
