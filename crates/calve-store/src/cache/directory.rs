//! Whoever has a cache's directory in their hands too need not ask its process for everything.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use calve_nix::SecretKey;

use super::objects::Objects;
use super::{Cache, CacheError, CacheOptions, blocking, index, keys};
use crate::remote::{Asker, Directory};

/// A random number of the kernel's for each of its starts (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Cache {
    /// Where this cache lies, if all of it lies in one local directory: as it was when it was opened. Only for those whom it may be
    /// of use to: nobody on another host learns what directories there are.
    pub fn directory(&self, asker: &Asker) -> Option<&Directory> {
        let directory = self.0.directory.as_ref()?;
        (asker.mark == own_mark().ok()?).then_some(directory)
    }

    /// This process as one that asks; none where the kernel does not say what it needs for that.
    pub fn asker(pushes: bool) -> Option<Asker> {
        Some(Asker { mark: own_mark().ok()?, pushes })
    }

    /// Opens the cache that lies there, where that is the same directory with the same index and key, and this process has it
    /// as the other one has; gives none elsewhere. Messages call it by `name`.
    pub async fn open_at(directory: &Directory, name: &str) -> Result<Option<Self>, CacheError> {
        let Directory { path, mark: told } = directory.clone();
        let here = path.clone();
        // Only where there is a cache already: none is made because somebody told of a directory.
        let mark = blocking(move || mark(&here, &keys::read(&here).ok()?).ok());
        if mark.await != Some(told) {
            return Ok(None);
        }
        Self::open_as_it_is(CacheOptions::local(&path), Some(name)).await.map(Some)
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
    let (at, index_at) = (fs::metadata(dir)?, fs::metadata(index::file(dir))?);
    // In a user namespace others may have our number, and who is not the owner would leave files that the owner cannot use.
    if at.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (path, key) = (dir.as_os_str().as_bytes(), key.public().to_string());
    Ok(digest(&[&own_mark()?, path, key.as_bytes()], &[at.dev(), at.ino(), index_at.ino()]))
}

/// A digest that two processes work out alike if they are of one user on one running system, and of one version.
fn own_mark() -> io::Result<[u8; 32]> {
    let user = rustix::process::geteuid().as_raw();
    let parts = [&fs::read(BOOT_ID)?[..], env!("CARGO_PKG_VERSION").as_bytes()];
    Ok(digest(&parts, &[user.into(), index::SCHEMA_VERSION.cast_unsigned()]))
}

fn digest(parts: &[&[u8]], numbers: &[u64]) -> [u8; 32] {
    let mut digest = blake3::Hasher::new();
    for part in parts {
        digest.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    for number in numbers {
        digest.update(&number.to_le_bytes());
    }
    digest.finalize().into()
}
