//! The archive of a tree on disk, read at any place without making it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use calve_nix::NarWriter;

use crate::{Node, Walk, WalkError, file_metadata, is_executable, nar_error, open_file};

/// Files of a tree that is viewed: each takes about 300 bytes of memory, and several views are open at once.
const VIEW_FILES_MAX: usize = 100_000;

/// The archive of a tree on disk, as it was when it was opened. Nothing that it gives is trusted: files may change.
pub struct NarView {
    root: PathBuf,
    /// All of the archive but the contents of files.
    frame: Vec<u8>,
    /// The files that are not empty, in the archive's order.
    files: Vec<ViewFile>,
    /// Names below the root, one behind the other.
    names: Vec<u8>,
    size: u64,
    /// The file that was read last.
    last: Mutex<Option<(usize, File)>>,
}

struct ViewFile {
    /// Where its contents begin in the archive.
    at: u64,
    size: u64,
    /// Bytes of the frame before it.
    frame_at: usize,
    /// Where its name lies in `names`.
    name: (usize, usize),
}

impl NarView {
    /// The archive of the tree at `root`; none where the tree has too many files to be worth the memory.
    pub fn open(root: &Path) -> Result<Option<Self>, WalkError> {
        let mut view = Self {
            root: root.to_owned(),
            frame: Vec::new(),
            files: Vec::new(),
            names: Vec::new(),
            size: 0,
            last: Mutex::new(None),
        };
        let mut nar = NarWriter::new(Vec::new()).map_err(|error| nar_error(error, root))?;
        for step in Walk::new(root) {
            let step = step?;
            let done = match &step.node {
                Node::Enter => nar.begin_directory(&step.name),
                Node::Leave => nar.end_directory(),
                Node::Symlink(target) => nar.symlink(&step.name, target),
                Node::File => {
                    if view.files.len() == VIEW_FILES_MAX {
                        return Ok(None);
                    }
                    let metadata = file_metadata(&step.path)?;
                    let size = metadata.len();
                    let begun = nar.begin_file(&step.name, is_executable(&metadata), size);
                    view.add_file(&step.path, size, nar.get_ref().len());
                    begun.and_then(|()| nar.end_file(size))
                }
            };
            done.map_err(|error| nar_error(error, &step.path))?;
        }
        view.frame = nar.finish().map_err(|error| nar_error(error, root))?;
        view.size += view.frame.len() as u64;
        Ok(Some(view))
    }

    /// Size of the archive in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the contents of the last file end.
    pub fn files_end(&self) -> u64 {
        self.files.last().map_or(0, |file| file.at + file.size)
    }

    /// The file whose contents are the `size` bytes from byte `at` of the archive, if they are all of one.
    pub fn file(&self, at: u64, size: u64) -> Option<PathBuf> {
        let n = self.files.binary_search_by_key(&at, |file| file.at).ok()?;
        (self.files[n].size == size).then(|| self.path(n))
    }

    /// Fills `buffer` with the archive's bytes from byte `at`.
    pub fn read_at(&self, buffer: &mut [u8], mut at: u64) -> Result<(), WalkError> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.size);
        end.ok_or_else(|| WalkError::Changed { path: self.root.clone() })?;
        // The last file that begins at or before the place, if any does.
        let mut next = self.files.partition_point(|file| file.at <= at);
        let mut rest = buffer;
        while !rest.is_empty() {
            let before = next.checked_sub(1).map(|n| (n, &self.files[n]));
            let taken = match before {
                Some((n, file)) if at < file.at + file.size => {
                    let len = rest.len().min((file.at + file.size - at) as usize);
                    self.read_file(n, &mut rest[..len], at - file.at)?;
                    len
                }
                _ => {
                    let behind = before.map_or((0, 0), |(_, file)| (file.at + file.size, file.frame_at));
                    let border = self.files.get(next).map_or(self.size, |file| file.at);
                    let from = behind.1 + (at - behind.0) as usize;
                    let len = rest.len().min((border - at) as usize);
                    rest[..len].copy_from_slice(&self.frame[from..from + len]);
                    next += usize::from(at + len as u64 == border);
                    len
                }
            };
            at += taken as u64;
            rest = &mut rest[taken..];
        }
        Ok(())
    }

    /// Takes up a file before whose contents the frame has `frame_at` bytes; `size` counts contents until the frame is whole.
    fn add_file(&mut self, path: &Path, size: u64, frame_at: usize) {
        if size == 0 {
            return;
        }
        let name = path.strip_prefix(&self.root).unwrap_or(Path::new("")).as_os_str().as_bytes();
        let begin = self.names.len();
        self.names.extend_from_slice(name);
        let at = frame_at as u64 + self.size;
        self.files.push(ViewFile { at, size, frame_at, name: (begin, self.names.len()) });
        self.size += size;
    }

    fn read_file(&self, n: usize, buffer: &mut [u8], at: u64) -> Result<(), WalkError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(n);
        if last.as_ref().is_none_or(|(open, _)| *open != n) {
            *last = Some((n, open_file(&path)?.0));
        }
        let (_, file) = last.as_ref().expect("opened above");
        file.read_exact_at(buffer, at).map_err(WalkError::read(&path))
    }

    /// Where a file lies.
    fn path(&self, n: usize) -> PathBuf {
        let (begin, end) = self.files[n].name;
        match begin == end {
            true => self.root.clone(),
            false => self.root.join(OsStr::from_bytes(&self.names[begin..end])),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::Step;

    fn archive(root: &Path) -> Vec<u8> {
        let mut nar = NarWriter::new(Vec::new()).unwrap();
        for step in Walk::new(root) {
            let Step { name, path, node } = step.unwrap();
            match node {
                Node::Enter => nar.begin_directory(&name),
                Node::Leave => nar.end_directory(),
                Node::Symlink(target) => nar.symlink(&name, &target),
                Node::File => {
                    let (mut file, metadata) = open_file(&path).unwrap();
                    nar.file(&name, is_executable(&metadata), metadata.len(), &mut file)
                }
            }
            .unwrap();
        }
        nar.finish().unwrap()
    }

    #[test]
    fn every_part_of_an_archive_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        for (name, size) in [("a/empty", 0), ("a/one", 1), ("a/b/page", 4096), ("z", 1000), ("none", 0)] {
            fs::write(root.join(name), vec![b'x'; size]).unwrap();
        }
        symlink("a", root.join("link")).unwrap();
        for root in [&root, &root.join("z"), &root.join("a/empty"), &root.join("link")] {
            let whole = archive(root);
            let view = NarView::open(root).unwrap().unwrap();
            assert_eq!(view.size(), whole.len() as u64);
            for len in [1, 7, 100, 3000, whole.len()] {
                for at in (0..whole.len()).step_by(len.div_ceil(3)) {
                    let mut part = vec![0; len.min(whole.len() - at)];
                    view.read_at(&mut part, at as u64).unwrap();
                    assert!(part == whole[at..at + part.len()], "{len} bytes at {at}");
                }
            }
            assert!(view.read_at(&mut [0; 2], whole.len() as u64 - 1).is_err());
        }
        let view = NarView::open(&root).unwrap().unwrap();
        let whole = archive(&root);
        let page = whole.windows(4096).position(|part| part == [b'x'; 4096]).unwrap() as u64;
        assert_eq!(view.file(page, 4096), Some(root.join("a/b/page")));
        for (at, size) in [(page, 4095), (page, 4097), (page - 1, 4097), (page + 1, 4095), (0, 1)] {
            assert_eq!(view.file(at, size), None);
        }
    }
}
