//! A walk over a tree of files in the order of an archive: depth first, names in the order of their bytes.

use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::vec;

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

use crate::WalkError;

/// One step of a walk. The root's name is empty.
#[derive(Debug)]
pub struct Step {
    /// The entry's name in its directory.
    pub name: Vec<u8>,
    /// Where it lies.
    pub path: PathBuf,
    /// What is there.
    pub node: Node,
}

/// What lies at a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory; its entries follow, then its [`Node::Leave`].
    Enter,
    /// The end of a directory's entries.
    Leave,
    /// A regular file; [`open_file`] or [`file_metadata`] says more. A walk does not ask: whoever reads a tree opens each file.
    File,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
}

/// Whether a file counts as executable: by its owner's bit, as in Nix.
pub fn is_executable(metadata: &Metadata) -> bool {
    metadata.mode() & 0o100 != 0
}

/// The steps through a tree; memory grows with the widest directories on one branch, the stack not at all.
pub struct Walk {
    root: Option<PathBuf>,
    open: Vec<(PathBuf, vec::IntoIter<Entry>)>,
}

/// A name in a directory, and what its listing says is there.
type Entry = (OsString, FileType);

impl Walk {
    /// A walk over the tree at `root`, which may also be a single file or link.
    pub fn new(root: &Path) -> Self {
        Self { root: Some(root.to_owned()), open: Vec::new() }
    }

    fn visit(&mut self, name: OsString, path: PathBuf, listed: Option<FileType>) -> Result<Step, WalkError> {
        if listed.is_some_and(|listed| listed.is_file()) {
            return Ok(Step { name: name.into_vec(), path, node: Node::File });
        }
        // Not as it was listed: what has become a link since leads nowhere.
        let metadata = fs::symlink_metadata(&path).map_err(WalkError::read(&path))?;
        let node = if metadata.is_dir() {
            self.open.push((path.clone(), sorted_entries(&path)?.into_iter()));
            Node::Enter
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(WalkError::read(&path))?;
            Node::Symlink(target.into_os_string().into_vec())
        } else if metadata.is_file() {
            Node::File
        } else {
            return Err(WalkError::SpecialFile { kind: special_kind(&metadata), path });
        };
        Ok(Step { name: name.into_vec(), path, node })
    }
}

impl Iterator for Walk {
    type Item = Result<Step, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.root.take() {
            return Some(self.visit(OsString::new(), root, None));
        }
        let (dir, entries) = self.open.last_mut()?;
        if let Some((name, listed)) = entries.next() {
            let path = dir.join(&name);
            return Some(self.visit(name, path, Some(listed)));
        }
        let (path, _) = self.open.pop()?;
        Some(Ok(Step { name: Vec::new(), path, node: Node::Leave }))
    }
}

fn sorted_entries(dir: &Path) -> Result<Vec<Entry>, WalkError> {
    let entries = fs::read_dir(dir).map_err(WalkError::read(dir))?;
    let entries = entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))));
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(WalkError::read(dir))?;
    entries.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    Ok(entries)
}

/// How files are opened: one that has become a link or a named pipe neither leads elsewhere nor blocks.
const TO_READ: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Opens a file that was regular a moment ago.
pub fn open_file(path: &Path) -> Result<(File, Metadata), WalkError> {
    opened(retry_on_intr(|| rustix::fs::open(path, TO_READ, Mode::empty())), path)
}

/// Opens the files of a walk, one after the other: those of one directory are found from there, and not from the root.
#[derive(Default)]
pub struct Opener {
    /// The directory of the file before.
    dir: Option<(PathBuf, OwnedFd)>,
}

impl Opener {
    /// As [`open_file`].
    pub fn open(&mut self, path: &Path) -> Result<(File, Metadata), WalkError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return open_file(path) };
        let (_, dir) = match self.dir.take() {
            Some(before) if before.0 == parent => self.dir.insert(before),
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = retry_on_intr(|| rustix::fs::open(parent, flags, Mode::empty()));
                let dir = dir.map_err(|error| WalkError::read(path)(error.into()))?;
                self.dir.insert((parent.to_owned(), dir))
            }
        };
        opened(retry_on_intr(|| rustix::fs::openat(&*dir, name, TO_READ, Mode::empty())), path)
    }
}

fn opened(file: rustix::io::Result<OwnedFd>, path: &Path) -> Result<(File, Metadata), WalkError> {
    let file = File::from(file.map_err(|error| WalkError::read(path)(error.into()))?);
    let metadata = regular(file.metadata(), path)?;
    Ok((file, metadata))
}

/// What there is to know of a file that was regular a moment ago.
pub fn file_metadata(path: &Path) -> Result<Metadata, WalkError> {
    regular(fs::symlink_metadata(path), path)
}

fn regular(metadata: io::Result<Metadata>, path: &Path) -> Result<Metadata, WalkError> {
    let metadata = metadata.map_err(WalkError::read(path))?;
    if metadata.is_file() { Ok(metadata) } else { Err(WalkError::Changed { path: path.to_owned() }) }
}

fn special_kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_socket() {
        "socket"
    } else if kind.is_fifo() {
        "named pipe"
    } else {
        "device"
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn files_are_opened_from_their_directories_and_what_took_their_place_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        for name in ["a/1", "a/b/2", "a/3", "4"] {
            fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink("1", at("a/link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("a/pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        let mut files = Opener::default();
        for name in ["a/1", "a/b/2", "a/3", "4", "a/1"] {
            let (mut file, metadata) = files.open(&at(name)).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), metadata.len()), (name, name.len() as u64));
        }
        assert!(matches!(files.open(&at("a/pipe")), Err(WalkError::Changed { .. })));
        for gone in ["a/link", "a/none", "none/1"] {
            let refused = files.open(&at(gone)).unwrap_err().to_string();
            assert!(refused.contains(gone), "{refused}");
        }
        assert!(files.open(&at("a/3")).is_ok());
    }
}
