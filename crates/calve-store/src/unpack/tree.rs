//! A tree written through descriptors of its directories, so that no name leads anywhere else (`openat(2)`).

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};

use super::UnpackError;
use crate::StoreError;
use crate::add::MTIME_SECONDS;

/// Descriptors of directories that a tree holds open; further up they are opened again on the way back. Several trees are
/// written at once, and a process has 1024 descriptors by default.
const OPEN_DIRS_MAX: usize = 32;
/// Bytes that are written at a time; smaller files go in one call.
const WRITE_BYTES: usize = 256 * 1024;

const SEALED_FILE: Mode = Mode::from_raw_mode(0o444);
const SEALED_EXECUTABLE: Mode = Mode::from_raw_mode(0o555);
const SEALED_DIR: Mode = Mode::from_raw_mode(0o555);
const OPEN_DIR: Mode = Mode::from_raw_mode(0o755);
/// The bits of a mode that say who may do what (inode(7)).
const PERMISSIONS: u32 = 0o7777;
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) struct TreeWriter {
    /// The directory that the root lies in.
    parent: OwnedFd,
    root_name: std::sync::Arc<[u8]>,
    /// The open directories from the root down; those far above may be closed.
    open: Vec<Option<OwnedFd>>,
    /// Where the current directory or, at the top, the parent lies; for messages.
    path: PathBuf,
    buffer: Vec<u8>,
    /// Whether files get the mode that they are made with, and executable ones: the process's mask or an access control
    /// list of the directory may take bits away. The same for the whole tree, and seen at its first file.
    kept_modes: [Option<bool>; 2],
}

impl TreeWriter {
    /// A tree whose root will lie at `place`.
    pub fn new(place: &Path) -> Result<Self, StoreError> {
        let (parent, name) = match (place.parent(), place.file_name()) {
            (Some(parent), Some(name)) => (parent, name.as_bytes().to_vec()),
            _ => return Err(StoreError::io("write", place)(ErrorKind::InvalidInput.into())),
        };
        let fd = rustix::fs::openat(CWD, parent, DIR_FLAGS, Mode::empty());
        let parent_fd = fd.map_err(|error| StoreError::io("open", parent)(error.into()))?;
        Ok(Self {
            parent: parent_fd,
            root_name: name.into(),
            open: Vec::new(),
            path: parent.to_owned(),
            buffer: Vec::new(),
            kept_modes: [None; 2],
        })
    }

    pub fn enter(&mut self, name: &[u8]) -> Result<(), StoreError> {
        let root = self.root_name.clone();
        let name = if self.open.is_empty() { &root } else { name };
        let made = rustix::fs::mkdirat(self.dir(), name, OPEN_DIR)
            .and_then(|()| rustix::fs::openat(self.dir(), name, DIR_FLAGS, Mode::empty()));
        let dir = made.map_err(|error| self.error(name, error.into()))?;
        self.path.push(OsStr::from_bytes(name));
        self.open.push(Some(dir));
        if let Some(far) = self.open.len().checked_sub(OPEN_DIRS_MAX + 1) {
            self.open[far] = None;
        }
        Ok(())
    }

    pub fn leave(&mut self) -> Result<(), StoreError> {
        let dir = self.open.pop().flatten().expect("the innermost directory is open");
        if self.open.is_empty() {
            self.path.pop();
            return Ok(());
        }
        let sealed = rustix::fs::futimens(&dir, &times()).and_then(|()| rustix::fs::fchmod(&dir, SEALED_DIR));
        let up = match self.open.last_mut() {
            Some(parent @ None) => rustix::fs::openat(&dir, "..", DIR_FLAGS, Mode::empty()).map(|fd| {
                *parent = Some(fd);
            }),
            _ => Ok(()),
        };
        sealed.and(up).map_err(|error| StoreError::io("write", &self.path)(error.into()))?;
        self.path.pop();
        Ok(())
    }

    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), StoreError> {
        let root = self.root_name.clone();
        let name = if self.open.is_empty() { &root } else { name };
        let made = rustix::fs::symlinkat(target, self.dir(), name)
            .and_then(|()| rustix::fs::utimensat(self.dir(), name, &times(), AtFlags::SYMLINK_NOFOLLOW));
        made.map_err(|error| self.error(name, error.into()))
    }

    pub fn file(
        &mut self,
        name: &[u8],
        executable: bool,
        size: u64,
        contents: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let root = self.root_name.clone();
        let name = if self.open.is_empty() { &root } else { name };
        let mode = if executable { SEALED_EXECUTABLE } else { SEALED_FILE };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let refused = |error: io::Error| UnpackError::Store(self.error(name, error));
        let file = rustix::fs::openat(self.dir(), name, flags, mode).map_err(|e| refused(e.into()))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(WRITE_BYTES, 0);
        let mut left = size;
        while left > 0 {
            let most = left.min(WRITE_BYTES as u64) as usize;
            contents.read_exact(&mut buffer[..most]).map_err(cut_off)?;
            write_all(&file, &buffer[..most]).map_err(|error| UnpackError::Store(self.error(name, error)))?;
            left -= most as u64;
        }
        let sealed = self.seal(&file, executable, mode).and_then(|()| rustix::fs::futimens(&file, &times()));
        sealed.map_err(|error| UnpackError::Store(self.error(name, error.into())))?;
        self.buffer = buffer;
        Ok(())
    }

    fn seal(&mut self, file: &OwnedFd, executable: bool, mode: Mode) -> rustix::io::Result<()> {
        let kept = &mut self.kept_modes[usize::from(executable)];
        if kept.is_none() {
            *kept = Some(rustix::fs::fstat(file)?.st_mode & PERMISSIONS == mode.as_raw_mode());
        }
        if *kept == Some(true) { Ok(()) } else { rustix::fs::fchmod(file, mode) }
    }

    fn dir(&self) -> impl AsFd + '_ {
        match self.open.last() {
            Some(dir) => dir.as_ref().expect("the innermost directory is open").as_fd(),
            None => self.parent.as_fd(),
        }
    }

    fn error(&self, name: &[u8], error: io::Error) -> StoreError {
        StoreError::io("write", &self.path.join(OsStr::from_bytes(name)))(error)
    }
}

/// What reading a file's bytes says is an archive's error, or the reason is known to whom the bytes come from.
fn cut_off(error: io::Error) -> UnpackError {
    match error.downcast() {
        Ok(error) => UnpackError::Archive(error),
        Err(error) => UnpackError::Input(error),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn times() -> Timestamps {
    let time = Timespec { tv_sec: MTIME_SECONDS as i64, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
