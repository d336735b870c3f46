//! A walk over a tree of files in the order of an archive: depth first, names in the order of their bytes.

use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::vec;

use rustix::fs::OFlags;

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

/// Opens a file that was regular a moment ago; one that has become a link or a named pipe neither leads elsewhere nor
/// blocks.
pub fn open_file(path: &Path) -> Result<(File, Metadata), WalkError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = file.map_err(WalkError::read(path))?;
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
