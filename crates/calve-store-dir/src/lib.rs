//! A store's directory as whoever puts paths there needs it: writable, and on one mount with the directories beside it.
//!
//! NixOS mounts `/nix/store` over itself, mostly read-only, so that nothing is written there by accident. A path can then
//! neither be renamed within it nor moved into it from a directory beside it. Nix itself mounts it anew in a namespace of its
//! own, which a program with several threads cannot have. A copy of the mount below it does the same: no other
//! process sees that, and it ends with its descriptor (open_tree(2), Linux 5.2).
//!
//! *Invariant*: it moves and writes nothing itself, and knows no store paths.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxFlags};
use rustix::mount::OpenTreeFlags;

/// A store's directory to write to.
#[derive(Debug)]
pub struct StoreDir {
    store: PathBuf,
    /// The directory that holds the store's, without what is mounted in it.
    below: Option<OwnedFd>,
    beside: bool,
}

impl StoreDir {
    /// The store at this absolute path, `/nix/store`. An error of the kind [`io::ErrorKind::ReadOnlyFilesystem`] where
    /// nothing can be written there; only root may where it is mounted read-only.
    pub fn open(store: &Path) -> io::Result<Self> {
        let parent = store.parent().unwrap_or(Path::new("/"));
        let writable = !is_read_only(store)?;
        let beside = mount_id(store)? == mount_id(parent)?;
        let plain = Self { store: store.to_owned(), below: None, beside };
        if writable && beside {
            return Ok(plain);
        }
        match below(store, parent) {
            Ok(below) => Ok(Self { below: Some(below), beside: true, ..plain }),
            Err(_) if writable => Ok(plain),
            Err(error) => Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, error)),
        }
    }

    /// By which path this process reaches `path`, which lies in the store or beside it, to write there.
    pub fn path(&self, path: &Path) -> PathBuf {
        let parent = self.store.parent().unwrap_or(Path::new("/"));
        match (&self.below, path.strip_prefix(parent)) {
            (Some(below), Ok(rest)) => {
                Path::new("/proc/self/fd").join(below.as_raw_fd().to_string()).join(rest)
            }
            _ => path.to_owned(),
        }
    }

    /// Whether what lies beside the store can be renamed into it.
    pub fn takes_from_beside(&self) -> bool {
        self.beside
    }
}

/// A copy of the mount that holds the store's directory, without the mounts in it.
fn below(store: &Path, parent: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let below = rustix::mount::open_tree(CWD, parent, flags)?;
    let name = store.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let seen = Path::new("/proc/self/fd").join(below.as_raw_fd().to_string()).join(name);
    let (this, that) = (seen.symlink_metadata()?, store.symlink_metadata()?);
    if (this.dev(), this.ino()) != (that.dev(), that.ino()) {
        return Err(io::Error::other("it is a file system of its own"));
    }
    if is_read_only(&seen)? {
        return Err(io::Error::other("its file system is read-only"));
    }
    Ok(below)
}

fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statvfs(path)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Names the mount that a path lies on; where the kernel does not tell (before Linux 5.8), its file system.
fn mount_id(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
    match found {
        Ok(found) if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(found.stx_mnt_id),
        _ => Ok(path.symlink_metadata()?.dev()),
    }
}
