//! A tree written through descriptors of its directories, so that no name leads anywhere else (`openat(2)`).

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::UnpackError;
use super::file::{Dir, Job, OpenFile, Shared, link, times};
use super::helpers::Helpers;
use crate::StoreError;

/// Descriptors of directories that a tree holds open by itself; further up they are opened again on the way back. Several
/// trees are written at once, and a process has 1024 descriptors by default.
const OPEN_DIRS_MAX: usize = 32;
/// Larger files are written part by part, while the rest of them is still to come.
const WHOLE_BYTES_MAX: u64 = 256 * 1024;

const OPEN_DIR: Mode = Mode::from_raw_mode(0o755);
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) struct TreeWriter {
    helpers: Helpers,
    shared: Arc<Shared>,
    /// The directory that the root lies in.
    parent: Arc<Dir>,
    root_name: Arc<[u8]>,
    /// The directories from the root down.
    open: Vec<Level>,
}

enum Level {
    Open(Arc<Dir>),
    /// Far above; whoever still makes files in it has it open.
    Closed(Weak<Dir>),
}

impl TreeWriter {
    /// A tree whose root will lie at `place`.
    pub fn new(place: &Path) -> Result<Self, StoreError> {
        let (parent, name) = match (place.parent(), place.file_name()) {
            (Some(parent), Some(name)) => (parent, name.as_bytes()),
            _ => return Err(StoreError::io("write", place)(ErrorKind::InvalidInput.into())),
        };
        let fd = rustix::fs::openat(CWD, parent, DIR_FLAGS, Mode::empty());
        let fd = fd.map_err(|error| StoreError::io("open", parent)(error.into()))?;
        let shared = Arc::default();
        let parent = Dir::new(fd, parent.to_owned(), &shared);
        Ok(Self { helpers: Helpers::new(), shared, parent, root_name: name.into(), open: Vec::new() })
    }

    pub fn enter(&mut self, name: &[u8]) -> Result<(), StoreError> {
        self.shared.check()?;
        let (dir, name) = self.at(name);
        let made = rustix::fs::mkdirat(&dir.fd, &*name, OPEN_DIR)
            .and_then(|()| rustix::fs::openat(&dir.fd, &*name, DIR_FLAGS, Mode::empty()));
        let fd = made.map_err(|error| dir.error(&name, error.into()))?;
        let path = dir.path.join(OsStr::from_bytes(&name));
        self.open.push(Level::Open(Dir::new(fd, path, &self.shared)));
        if let Some(far) = self.open.len().checked_sub(OPEN_DIRS_MAX + 1)
            && let Level::Open(dir) = &self.open[far]
        {
            self.open[far] = Level::Closed(Arc::downgrade(dir));
        }
        Ok(())
    }

    pub fn leave(&mut self) -> Result<(), StoreError> {
        let Some(Level::Open(dir)) = self.open.pop() else { unreachable!("the innermost directory is open") };
        if self.open.is_empty() {
            return Ok(());
        }
        if let Some(Level::Closed(parent)) = self.open.last() {
            let parent = parent.upgrade().map_or_else(|| up(&dir, &self.shared), Ok)?;
            self.open.pop();
            self.open.push(Level::Open(parent));
        }
        dir.left.store(true, Ordering::Release);
        Ok(())
    }

    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), StoreError> {
        let (dir, name) = self.at(name);
        let made = rustix::fs::symlinkat(target, &dir.fd, &*name)
            .and_then(|()| rustix::fs::utimensat(&dir.fd, &*name, &times(), AtFlags::SYMLINK_NOFOLLOW));
        made.map_err(|error| dir.error(&name, error.into()))
    }

    /// A file of `size` bytes, which `next` gives part by part, each with at most so many bytes as it is told; they are
    /// not written where they lie here in a `twin` that can have another name.
    pub fn file(
        &mut self,
        name: &[u8],
        executable: bool,
        size: u64,
        twin: Option<PathBuf>,
        mut next: impl FnMut(usize) -> io::Result<Bytes>,
    ) -> Result<(), UnpackError> {
        self.shared.check().map_err(UnpackError::Store)?;
        let (dir, name) = self.at(name);
        // Where the root is a file, what is done with it in its place is done with all its names.
        let twin = twin.filter(|_| !self.open.is_empty());
        let mut left = size;
        if size <= WHOLE_BYTES_MAX {
            let mut parts = Vec::new();
            while left > 0 {
                let part = next(left as usize).map_err(cut_off)?;
                left -= part.len() as u64;
                parts.push(part);
            }
            self.helpers.run(Job::File { dir, name: name.to_vec(), executable, twin, parts }, false);
            return Ok(());
        }
        let file = match twin.is_some_and(|twin| link(&twin, &dir, &name, executable, size)) {
            true => None,
            false => Some(OpenFile::make(&dir, &name, executable).map_err(UnpackError::Store)?),
        };
        while left > 0 {
            let part = next(usize::try_from(left).unwrap_or(usize::MAX)).map_err(cut_off)?;
            let at = size - left;
            left -= part.len() as u64;
            if let Some(file) = &file {
                self.helpers.run(Job::Part { file: Arc::clone(file), at, part }, true);
            }
        }
        Ok(())
    }

    /// Waits until all of it is written.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.helpers.finish();
        self.shared.check()
    }

    /// Where something of this name goes, and its name there.
    fn at(&self, name: &[u8]) -> (Arc<Dir>, Arc<[u8]>) {
        match self.open.last() {
            Some(Level::Open(dir)) => (Arc::clone(dir), name.into()),
            Some(Level::Closed(_)) => unreachable!("the innermost directory is open"),
            None => (Arc::clone(&self.parent), Arc::clone(&self.root_name)),
        }
    }
}

/// The directory around this one.
fn up(dir: &Dir, shared: &Arc<Shared>) -> Result<Arc<Dir>, StoreError> {
    let fd = rustix::fs::openat(&dir.fd, "..", DIR_FLAGS, Mode::empty());
    let fd = fd.map_err(|error| StoreError::io("open", &dir.path)(error.into()))?;
    Ok(Dir::new(fd, dir.path.parent().unwrap_or(&dir.path).to_owned(), shared))
}

/// What reading a file's bytes says is an archive's error, or the reason is known to whom the bytes come from.
fn cut_off(error: io::Error) -> UnpackError {
    match error.downcast() {
        Ok(error) => UnpackError::Archive(error),
        Err(error) => UnpackError::Input(error),
    }
}
