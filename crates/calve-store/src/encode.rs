//! Chunks compressed, with compressors that are kept: making one takes longer than most chunks do.

use std::io;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Compressor;

/// Compressors that are kept between chunks: as many as work at once. Each has about a MiB, so that one a thread would be
/// much on a cache with hundreds of them.
const KEPT_MAX: usize = 16;

static KEPT: Mutex<Vec<(i32, Compressor<'static>)>> = Mutex::new(Vec::new());

/// One zstd frame of these bytes.
pub fn compressed(plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let found = {
        let mut kept = kept();
        kept.iter().position(|(of, _)| *of == level).map(|at| kept.swap_remove(at).1)
    };
    let mut compressor = found.map_or_else(|| Compressor::new(level), Ok)?;
    let result = compressor.compress(plain);
    let mut kept = kept();
    if kept.len() < KEPT_MAX {
        kept.push((level, compressor));
    }
    result
}
