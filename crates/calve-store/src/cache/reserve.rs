//! Room on the disk that a collection gives back before it begins: removing rows takes some, and a full disk has none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// Least bytes: what is left of packs is written into one new pack before they go.
const MIN_BYTES: u64 = super::PACK_BYTES as u64;
/// Most bytes: a transaction of a collection touches a few thousand pages of the index.
const MAX_BYTES: u64 = 32 << 20;

fn file(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// Takes the room where it is not taken yet. A disk that has none, or a file system that cannot, stays without.
pub(super) fn keep(dir: &Path) {
    let path = file(dir);
    let index = fs::metadata(super::index::file(dir)).map_or(0, |metadata| metadata.len());
    let bytes = (2 * index).clamp(MIN_BYTES, MAX_BYTES);
    let before = fs::metadata(&path).map(|metadata| metadata.len()).ok();
    if before.is_some_and(|before| before >= bytes) {
        return;
    }
    let options = File::options().write(true).create(true).truncate(false).open(&path);
    let taken = options.and_then(|file| Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?));
    if let Err(error) = taken {
        tracing::debug!("{} has no {bytes} bytes: {error}", path.display());
        // What it had before stays.
        if before.is_none_or(|before| before == 0) {
            release(dir);
        }
    }
}

/// Gives the room back that the cache in this directory keeps for [`super::Cache::collect`], so that it can be opened and
/// collected though the disk is full.
pub fn release(dir: &Path) {
    let _ = fs::remove_file(file(dir));
}
