//! Whoever has a cache's directory in their hands too need not ask its process for everything.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use calve_nix::SecretKey;

use super::objects::Objects;
use super::{Cache, CacheError, CacheOptions, blocking, index, keys};
use crate::remote::Directory;

/// A random number of the kernel's for each of its starts (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Cache {
    /// Where this cache lies, if all of it lies in one local directory: as it was when it was opened.
    pub fn directory(&self) -> Option<&Directory> {
        self.0.directory.as_ref()
    }

    /// Opens the cache that lies there, where that is the same directory with the same index and key, and this process has it
    /// as the other one has; gives none elsewhere.
    pub async fn open_at(directory: &Directory) -> Result<Option<Self>, CacheError> {
        let Directory { path, mark: told } = directory.clone();
        let here = path.clone();
        // Only where there is a cache already: none is made because somebody told of a directory.
        let mark = blocking(move || mark(&here, &keys::read(&here).ok()?).ok());
        if mark.await != Some(told) {
            return Ok(None);
        }
        Self::open_as_it_is(CacheOptions::local(&path)).await.map(Some)
    }
}

/// Where a cache lies that was opened.
pub(super) fn of(dir: &Path, objects: &Objects, key: &SecretKey) -> Option<Directory> {
    if !objects.lie_in(dir) {
        return None;
    }
    let path = fs::canonicalize(dir).ok()?;
    let mark = mark(&path, key).ok()?;
    Some(Directory { path, mark })
}

/// A digest that two processes work out alike if they see the same directory of the same running system with the same index and
/// key, own it, and are of the same version.
fn mark(dir: &Path, key: &SecretKey) -> io::Result<[u8; 32]> {
    let (boot, at, index_at) = (fs::read(BOOT_ID)?, fs::metadata(dir)?, fs::metadata(index::file(dir))?);
    let user = rustix::process::geteuid().as_raw();
    // In a user namespace others may have our number, and who is not the owner would leave files that the owner cannot use.
    if at.uid() != user {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (path, key) = (dir.as_os_str().as_bytes(), key.public().to_string());
    let mut digest = blake3::Hasher::new();
    for part in [&boot, path, key.as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()] {
        digest.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    for number in [at.dev(), at.ino(), index_at.ino(), user.into(), index::SCHEMA_VERSION.cast_unsigned()] {
        digest.update(&number.to_le_bytes());
    }
    Ok(digest.finalize().into())
}
