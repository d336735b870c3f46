//! Files and directories of a tree that is written, by whichever thread.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};

use crate::StoreError;
use crate::add::MTIME_SECONDS;

const SEALED_FILE: Mode = Mode::from_raw_mode(0o444);
const SEALED_EXECUTABLE: Mode = Mode::from_raw_mode(0o555);
const SEALED_DIR: Mode = Mode::from_raw_mode(0o555);
/// The bits of a mode that say who may do what (inode(7)).
const PERMISSIONS: u32 = 0o7777;

/// What all that write to one tree share.
#[derive(Default)]
pub(super) struct Shared {
    failed: AtomicBool,
    failure: Mutex<Option<StoreError>>,
    /// Whether files get the mode that they are made with, and executable ones: the process's mask or an access control
    /// list of the directory may take bits away. The same for the whole tree, and seen at its first file.
    modes: [AtomicU8; 2],
}

const MODE_KEPT: u8 = 1;
const MODE_CHANGED: u8 = 2;

/// A directory that is open for whoever makes files in it. Once the archive has left it and the last file in it is made, it
/// is sealed: that file was the last thing to change its time.
pub(super) struct Dir {
    pub fd: OwnedFd,
    /// Where it lies, for messages.
    pub path: PathBuf,
    pub left: AtomicBool,
    shared: Arc<Shared>,
}

/// A file that is written by several jobs, sealed after the last.
pub(super) struct OpenFile {
    fd: OwnedFd,
    dir: Arc<Dir>,
    name: Vec<u8>,
    executable: bool,
}

/// What may be done by another thread.
pub(super) enum Job {
    /// A whole file.
    File { dir: Arc<Dir>, name: Vec<u8>, executable: bool, twin: Option<PathBuf>, parts: Vec<Bytes> },
    /// A part of a file at a place of it.
    Part { file: Arc<OpenFile>, at: u64, part: Bytes },
}

impl Shared {
    fn fail(&self, error: StoreError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// The first failure, if there was one.
    pub fn check(&self) -> Result<(), StoreError> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

impl Dir {
    pub fn new(fd: OwnedFd, path: PathBuf, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { fd, path, left: AtomicBool::new(false), shared: Arc::clone(shared) })
    }

    pub fn error(&self, name: &[u8], error: io::Error) -> StoreError {
        StoreError::io("write", &self.path.join(OsStr::from_bytes(name)))(error)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !*self.left.get_mut() {
            return;
        }
        let sealed =
            rustix::fs::futimens(&self.fd, &times()).and_then(|()| rustix::fs::fchmod(&self.fd, SEALED_DIR));
        if let Err(error) = sealed {
            self.shared.fail(StoreError::io("write", &self.path)(error.into()));
        }
    }
}

impl OpenFile {
    pub fn make(dir: &Arc<Dir>, name: &[u8], executable: bool) -> Result<Arc<Self>, StoreError> {
        let fd = make(dir, name, executable).map_err(|error| dir.error(name, error.into()))?;
        Ok(Arc::new(Self { fd, dir: Arc::clone(dir), name: name.to_owned(), executable }))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Err(error) = seal(&self.fd, self.executable, &self.dir.shared) {
            self.dir.shared.fail(self.dir.error(&self.name, error.into()));
        }
    }
}

impl Job {
    /// Does it; a failure is kept for who waits for the whole tree.
    pub fn run(self) {
        match self {
            Self::File { dir, name, executable, twin, parts } => {
                let write = || {
                    let size = parts.iter().map(|part| part.len() as u64).sum();
                    if twin.is_some_and(|twin| link(&twin, &dir, &name, executable, size)) {
                        return Ok(());
                    }
                    let fd = make(&dir, &name, executable)?;
                    let mut at = 0;
                    for part in &parts {
                        write_at(&fd, part, at)?;
                        at += part.len() as u64;
                    }
                    Ok(seal(&fd, executable, &dir.shared)?)
                };
                write().unwrap_or_else(|error| dir.shared.fail(dir.error(&name, error)));
            }
            Self::Part { file, at, part } => {
                let written = write_at(&file.fd, &part, at);
                written.unwrap_or_else(|error| file.dir.shared.fail(file.dir.error(&file.name, error)));
            }
        }
    }
}

fn mode(executable: bool) -> Mode {
    if executable { SEALED_EXECUTABLE } else { SEALED_FILE }
}

fn make(dir: &Dir, name: &[u8], executable: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir.fd, name, flags, mode(executable))
}

/// Gives `twin` another name, if it is this user's own and sealed as the file of that name would be. What another user
/// owns, he may change; a file may have so many names and no more, all on one file system.
pub(super) fn link(twin: &Path, dir: &Dir, name: &[u8], executable: bool, size: u64) -> bool {
    if rustix::fs::linkat(CWD, twin, &dir.fd, name, AtFlags::empty()).is_err() {
        return false;
    }
    let sealed = FileType::RegularFile.as_raw_mode() | mode(executable).as_raw_mode();
    let linked = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_sealed = linked.is_ok_and(|file| {
        (file.st_mode, file.st_size as u64) == (sealed, size)
            && (file.st_mtime, file.st_mtime_nsec) == (MTIME_SECONDS as i64, 0)
            && file.st_uid == rustix::process::geteuid().as_raw()
    });
    if !is_sealed {
        // Where it stays, the file cannot be made, which is said.
        let _ = rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty());
    }
    is_sealed
}

fn seal(file: &OwnedFd, executable: bool, shared: &Shared) -> rustix::io::Result<()> {
    let known = &shared.modes[usize::from(executable)];
    let mode = mode(executable);
    if known.load(Ordering::Relaxed) == 0 {
        let kept = rustix::fs::fstat(file)?.st_mode & PERMISSIONS == mode.as_raw_mode();
        known.store(if kept { MODE_KEPT } else { MODE_CHANGED }, Ordering::Relaxed);
    }
    if known.load(Ordering::Relaxed) == MODE_CHANGED {
        rustix::fs::fchmod(file, mode)?;
    }
    rustix::fs::futimens(file, &times())
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn times() -> Timestamps {
    let time = Timespec { tv_sec: MTIME_SECONDS as i64, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
