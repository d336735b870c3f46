//! Whoever has a cache's directory in their hands too need not ask its process for everything.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Cache, CacheError, CacheOptions, blocking, index};
use crate::remote::Directory;

/// A random number of the kernel's for each of its starts (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Cache {
    /// Where this cache lies, if all of it lies in one local directory.
    pub async fn directory(&self) -> Option<Directory> {
        if !self.0.objects.lie_in(&self.0.dir) {
            return None;
        }
        let dir = self.0.dir.clone();
        let found = blocking(move || {
            let path = fs::canonicalize(dir)?;
            let mark = mark(&path)?;
            Ok::<_, io::Error>(Directory { path, mark })
        });
        found.await.ok()
    }

    /// Opens the cache that lies there, where that is the same directory, and this process has it as the other one has; gives
    /// none elsewhere.
    pub async fn open_at(directory: &Directory) -> Result<Option<Self>, CacheError> {
        let Directory { path, mark: told } = directory.clone();
        let here = path.clone();
        if blocking(move || mark(&here)).await.ok() != Some(told) {
            return Ok(None);
        }
        Self::open(CacheOptions::local(&path)).await.map(Some)
    }
}

/// A digest that two processes work out alike if they see the same directory of the same running system, own it, and know the
/// same formats.
fn mark(dir: &Path) -> io::Result<[u8; 32]> {
    // Only where there is a cache already: whoever asks makes none because somebody told him of a directory.
    let (boot, at, index_at) = (fs::read(BOOT_ID)?, fs::metadata(dir)?, fs::metadata(index::file(dir))?);
    let user = rustix::process::geteuid().as_raw();
    // In a user namespace others may have our number, and who is not the owner would leave files that the owner cannot use.
    if at.uid() != user {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut digest = blake3::Hasher::new();
    for part in [&boot, dir.as_os_str().as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()] {
        digest.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    for number in [at.dev(), at.ino(), index_at.ino(), user.into(), index::SCHEMA_VERSION.cast_unsigned()] {
        digest.update(&number.to_le_bytes());
    }
    Ok(digest.finalize().into())
}
