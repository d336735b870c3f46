//! Chunks made plain, with one decompressor a thread: making one takes longer than most chunks do.

use std::cell::RefCell;
use std::io::Cursor;

use crate::chunk::{ChunkId, StoredChunk};
use crate::cut::ChunkError;

thread_local! {
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The chunk's plain bytes, checked against its length and id.
pub fn plain(chunk: &StoredChunk) -> Result<Vec<u8>, ChunkError> {
    let mut plain = Vec::new();
    append(chunk, &mut plain)?;
    Ok(plain)
}

/// The chunk's plain bytes behind what `out` has already, of the right length and nothing more: for who checks a hash over them
/// anyway.
pub fn append_unchecked(chunk: &StoredChunk, out: &mut Vec<u8>) -> Result<(), ChunkError> {
    let damaged = |message: String| ChunkError { id: chunk.id, message };
    let begin = out.len();
    out.reserve_exact(chunk.len as usize);
    let len = DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        let mut room = Cursor::new(out);
        room.set_position(begin as u64);
        decompressor.decompress_to_buffer(&chunk.zstd, &mut room)
    });
    let len = len.map_err(|error| damaged(error.to_string()))?;
    if len != chunk.len as usize {
        return Err(damaged(format!("it has {len} bytes instead of {}", chunk.len)));
    }
    Ok(())
}

/// The chunk's plain bytes behind what `out` has already, checked against its length and id.
pub fn append(chunk: &StoredChunk, out: &mut Vec<u8>) -> Result<(), ChunkError> {
    let begin = out.len();
    append_unchecked(chunk, out)?;
    let found = ChunkId::of(&out[begin..]);
    let message = || format!("its bytes have the id {found}");
    if found == chunk.id { Ok(()) } else { Err(ChunkError { id: chunk.id, message: message() }) }
}
