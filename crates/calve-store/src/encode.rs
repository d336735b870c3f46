//! Chunks compressed, with compressors that are kept: making one takes longer than most chunks do.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use crate::chunk::CHUNK_STORED_MAX;

/// Compressors that are kept between chunks: as many as work at once. Each has about a MiB, so that one a thread would be
/// much on a cache with hundreds of them.
const KEPT_MAX: usize = 16;
/// Most bytes of the room for frames that is kept beside each.
const ROOM_MAX: usize = CHUNK_STORED_MAX as usize;

/// A compressor, and room for what it gives: a frame that was compressed in its own place would keep the room that it could
/// have needed, three times what it has.
struct Kept {
    level: i32,
    compressor: Compressor<'static>,
    room: Vec<u8>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// One zstd frame of these bytes.
pub fn compressed(plain: &[u8], level: i32) -> io::Result<Bytes> {
    let all = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let found = {
        let mut all = all();
        all.iter().position(|kept| kept.level == level).map(|at| all.swap_remove(at))
    };
    let mut kept = match found {
        Some(kept) => kept,
        None => Kept { level, compressor: Compressor::new(level)?, room: Vec::new() },
    };
    kept.room.clear();
    kept.room.reserve_exact(compress_bound(plain.len()));
    kept.compressor.compress_to_buffer(plain, &mut kept.room)?;
    let frame = Bytes::copy_from_slice(&kept.room);
    if kept.room.capacity() > ROOM_MAX {
        kept.room = Vec::new();
    }
    let mut all = all();
    if all.len() < KEPT_MAX {
        all.push(kept);
    }
    Ok(frame)
}
