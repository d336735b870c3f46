//! Adding a file or directory to the private store, under the very path that `nix-store --add` gives it.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calve_nix::{HashWriter, Sha256Hash, StorePath};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::archive::{self, Copy};
use crate::register::sync_dir;
use crate::scratch::Scratch;
use crate::{PathInfo, Store, StoreError};

/// Time of every file in a store, in seconds since the epoch, as Nix sets it.
pub(crate) const MTIME_SECONDS: u64 = 1;
/// Files that are flushed to the disk one by one; where there are more, the whole file system is flushed once at the
/// end, because each flush costs a commit of the file system's journal.
const FLUSHED_SINGLY_MAX: usize = 16;

impl Store {
    /// Adds the file or directory at `path` (followed, if it is a symbolic link) and gives the path that
    /// `nix-store --add` gives; without `name` it is called as the file is. What is already valid, here or in Nix, is
    /// not copied again. When it fails, nothing is left; two processes may add the same thing at once.
    pub fn add(&self, path: &Path, name: Option<&str>) -> Result<StorePath, StoreError> {
        let source = path.canonicalize().map_err(StoreError::io("read", path))?;
        if self.root.starts_with(&source) {
            // The copy would hold itself.
            return Err(StoreError::HoldsStore { path: source, root: self.root.clone() });
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None => String::from_utf8_lossy(source.file_name().unwrap_or_default().as_bytes()).into_owned(),
        };
        // Also refuses a bad name before anything is read.
        store_path(&name, &Sha256Hash::of(b""))?;
        if self.may_hold(&name)? {
            let (hash, _) = archive::hash_tree(&source)?;
            let path = store_path(&name, &hash)?;
            if self.is_present(&path)? {
                return Ok(path);
            }
        }
        self.copy_in(&source, &name)
    }

    /// Whether a path of this name may be valid already, so that hashing before copying may spare the copy.
    fn may_hold(&self, name: &str) -> Result<bool, StoreError> {
        let here = self.register.list()?.iter().any(|path| path.name() == name);
        Ok(here || self.nix.may_hold(name)?)
    }

    /// Whether the path is valid and its files are there.
    fn is_present(&self, path: &StorePath) -> Result<bool, StoreError> {
        Ok(self.is_private(path) || self.is_in_nix(path)?)
    }

    fn copy_in(&self, source: &Path, name: &str) -> Result<StorePath, StoreError> {
        let scratch = {
            let lock = self.lock()?;
            Scratch::new(&self.tmp(), &lock)?
        };
        let tree = scratch.path().join("tree");
        let mut copy = TreeCopy::new(tree.clone());
        let (nar_hash, nar_size) = archive::archive(source, HashWriter::default(), &mut copy)?.finish();
        let path = store_path(name, &nar_hash)?;
        copy.flush()?;
        let _lock = self.lock()?;
        if self.is_present(&path)? {
            return Ok(path);
        }
        let place = self.private_path(&path);
        self.move_away(&place, scratch.path())?;
        fs::rename(&tree, &place).map_err(StoreError::io("write", &place))?;
        seal(&place)?;
        sync_dir(&self.root)?;
        let info = PathInfo {
            // The content address of what `nix-store --add` adds: a tree, by the hash of its archive.
            ca: Some(format!("fixed:r:sha256:{}", nar_hash.to_base32())),
            path: path.clone(),
            nar_hash,
            nar_size,
            references: vec![],
            deriver: None,
            signatures: vec![],
        };
        self.register.insert(&info, scratch.path())?;
        Ok(path)
    }
}

fn store_path(name: &str, hash: &Sha256Hash) -> Result<StorePath, StoreError> {
    StorePath::from_source(name, hash).map_err(|source| StoreError::BadName { name: name.to_owned(), source })
}

/// Gives a file or directory the permissions and the time that everything in a store has.
pub(crate) fn seal(path: &Path) -> Result<(), StoreError> {
    let sealed = File::open(path).and_then(|file| {
        let mode = file.metadata()?.permissions().mode();
        file.set_times(
            FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(MTIME_SECONDS)),
        )?;
        file.set_permissions(Permissions::from_mode(if mode & 0o100 != 0 { 0o555 } else { 0o444 }))
    });
    sealed.map_err(StoreError::io("write", path))
}

/// Builds a tree with the permissions and times of a store. Its root, if a directory, is left writable: it has yet to be
/// moved to its place.
struct TreeCopy {
    root: PathBuf,
    open: Vec<PathBuf>,
    file: Option<(PathBuf, File)>,
    files: usize,
}

impl TreeCopy {
    fn new(root: PathBuf) -> Self {
        Self { root, open: Vec::new(), file: None, files: 0 }
    }

    fn place(&self, name: &[u8]) -> PathBuf {
        match self.open.last() {
            Some(dir) => dir.join(std::ffi::OsStr::from_bytes(name)),
            None => self.root.clone(),
        }
    }

    /// Makes the whole copy survive a power failure.
    fn flush(&self) -> Result<(), StoreError> {
        if self.files <= FLUSHED_SINGLY_MAX {
            return Ok(());
        }
        let synced = File::open(&self.root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
        synced.map_err(StoreError::io("write", &self.root))
    }
}

impl Copy for TreeCopy {
    fn enter(&mut self, name: &[u8]) -> Result<(), StoreError> {
        let path = self.place(name);
        fs::create_dir(&path).map_err(StoreError::io("write", &path))?;
        self.open.push(path);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), StoreError> {
        let path = self.open.pop().expect("the walk leaves what it entered");
        if self.open.is_empty() { Ok(()) } else { seal(&path) }
    }

    fn file(&mut self, name: &[u8]) -> Result<impl Write, StoreError> {
        let path = self.place(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let (_, file) = self.file.insert((path.clone(), file.map_err(StoreError::io("write", &path))?));
        Ok(file)
    }

    fn file_end(&mut self, executable: bool) -> Result<(), StoreError> {
        let (path, file) = self.file.take().expect("the file that began");
        self.files += 1;
        let flushed = if self.files <= FLUSHED_SINGLY_MAX { file.sync_all() } else { Ok(()) };
        let mode = if executable { 0o700 } else { 0o600 };
        let marked = flushed.and_then(|()| file.set_permissions(Permissions::from_mode(mode)));
        marked.map_err(StoreError::io("write", &path))?;
        seal(&path)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), StoreError> {
        let path = self.place(name);
        let target = std::ffi::OsStr::from_bytes(target);
        let time = Timespec { tv_sec: MTIME_SECONDS as i64, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let made = std::os::unix::fs::symlink(target, &path)
            .and_then(|()| Ok(rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?));
        made.map_err(StoreError::io("write", &path))
    }
}
