//! Directories for work in progress, `<root>/.tmp/<random>`: gone when dropped, and when their process died, gone at the
//! next opening of the store. A lock on the directory itself says that its process lives.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use calve_tree::{Node, Walk};

use crate::StoreError;
use crate::store::RootLock;

/// A locked directory for work in progress.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes a directory in `parent`. The lock on the store's root keeps cleaners away until the directory's own holds.
    pub fn new(parent: &Path, _root: &RootLock) -> Result<Self, StoreError> {
        let made = tempfile::Builder::new().prefix("").tempdir_in(parent);
        let path = made.map_err(StoreError::io("write to", parent))?.keep();
        let lock = File::open(&path).and_then(|lock| lock.lock().map(|()| lock));
        Ok(Self { _lock: lock.map_err(StoreError::io("lock", &path))?, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over the directories in `parent` whose processes are dead; they go when the result is dropped.
    pub fn leftovers(parent: &Path, _root: &RootLock) -> Result<Vec<Self>, StoreError> {
        let mut dead = Vec::new();
        for entry in fs::read_dir(parent).map_err(StoreError::io("read", parent))? {
            let path = entry.map_err(StoreError::io("read", parent))?.path();
            let lock = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock.map_err(StoreError::io("read", &path))?,
            };
            if lock.try_lock().is_ok() {
                dead.push(Self { path, _lock: lock });
            }
        }
        Ok(dead)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody can be told here; what stays is a leftover for the next opening.
        let _ = remove_tree(&self.path);
    }
}

/// Removes a tree whose directories may be read-only, as those of store paths are; absence is success.
pub fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => {
            if !metadata.map_err(StoreError::io("remove", path))?.is_dir() {
                return fs::remove_file(path).map_err(StoreError::io("remove", path));
            }
        }
    }
    for step in Walk::new(path) {
        // A special file ends a walk: `remove_dir_all` below copes with it.
        let Ok(step) = step else { continue };
        if step.node == Node::Enter {
            let writable = fs::set_permissions(&step.path, Permissions::from_mode(0o700));
            writable.map_err(StoreError::io("remove", &step.path))?;
        }
    }
    fs::remove_dir_all(path).map_err(StoreError::io("remove", path))
}
