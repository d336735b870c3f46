//! The archive of a tree on disk, read at any place without making it: so chunks that a host holds in some path's files
//! need not be fetched.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use calve_nix::NarWriter;
use calve_nix::store_path::HASH_CHARS;

use crate::archive::{nar_error, open_file};
use crate::chunk::ChunkId;
use crate::normal::PLACEHOLDER;
use crate::recipe::{Piece, Position};
use crate::tree::{Node, Walk};
use crate::{StoreError, recipe::Recipe};

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
    pub fn open(root: &Path) -> Result<Option<Self>, StoreError> {
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
                Node::File { executable, size } => {
                    if view.files.len() == VIEW_FILES_MAX {
                        return Ok(None);
                    }
                    let begun = nar.begin_file(&step.name, *executable, *size);
                    view.add_file(&step.path, *size, nar.get_ref().len());
                    begun.and_then(|()| nar.end_file(*size))
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

    /// Where the contents of the last file end.
    fn files_end(&self) -> u64 {
        self.files.last().map_or(0, |file| file.at + file.size)
    }

    /// Fills `buffer` with the archive's bytes from byte `at`.
    pub fn read_at(&self, buffer: &mut [u8], mut at: u64) -> Result<(), StoreError> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.size);
        end.ok_or_else(|| StoreError::Changed { path: self.root.clone() })?;
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

    fn read_file(&self, n: usize, buffer: &mut [u8], at: u64) -> Result<(), StoreError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (begin, end) = self.files[n].name;
        let path = match begin == end {
            true => self.root.clone(),
            false => self.root.join(OsStr::from_bytes(&self.names[begin..end])),
        };
        if last.as_ref().is_none_or(|(open, _)| *open != n) {
            *last = Some((n, open_file(&path)?));
        }
        let (_, file) = last.as_ref().expect("opened above");
        file.read_exact_at(buffer, at).map_err(StoreError::io("read", &path))
    }
}

/// The normalised chunks of a tree on disk whose recipe is known.
pub struct ChunkView {
    nar: NarView,
    /// Where hash parts begin in the archive, ascending.
    places: Vec<u64>,
}

impl ChunkView {
    /// The chunks of the tree at `root` by the recipe that it once had; none where it cannot have it now.
    pub fn open(root: &Path, recipe: &Recipe) -> Result<Option<Self>, StoreError> {
        let Some(nar) = NarView::open(root)? else { return Ok(None) };
        if nar.size() != recipe.nar_size() {
            return Ok(None);
        }
        Ok(Some(Self { nar, places: places(&recipe.positions) }))
    }

    /// The chunks of a tree of which only the first part is there, by the recipe that the whole has; none where it has
    /// too many files.
    pub(crate) fn open_part(root: &Path, recipe: &Recipe) -> Result<Option<Self>, StoreError> {
        let nar = NarView::open(root)?;
        Ok(nar.map(|nar| Self { nar, places: places(&recipe.positions) }))
    }

    /// Whether these bytes of the archive may lie in what is there of it.
    pub(crate) fn reaches(&self, at: u64, len: u32) -> bool {
        at + u64::from(len) <= self.nar.files_end()
    }

    /// What to say where a chunk that must be there is not.
    pub(crate) fn changed(&self) -> StoreError {
        StoreError::Changed { path: self.nar.root.clone() }
    }

    /// The plain bytes of a chunk that begins at byte `at` of the archive; none where they are no longer there.
    pub fn chunk(&self, piece: Piece, at: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; piece.len as usize];
        self.nar.read_at(&mut bytes, at).ok()?;
        blank(&mut bytes, at, &self.places);
        (ChunkId::of(&bytes) == piece.id).then_some(bytes)
    }
}

/// Where hash parts begin in an archive with these positions.
fn places(positions: &[Position]) -> Vec<u64> {
    let mut end = 0;
    let place = |position: &Position| {
        let begin = end + position.skip;
        end = begin + HASH_CHARS as u64;
        begin
    };
    positions.iter().map(place).collect()
}

/// Replaces the hash parts in `bytes`, which begin at byte `at` of the archive.
fn blank(bytes: &mut [u8], at: u64, places: &[u64]) {
    let end = at + bytes.len() as u64;
    let first = places.partition_point(|place| place + HASH_CHARS as u64 <= at);
    for &place in places[first..].iter().take_while(|place| **place < end) {
        let (from, to) = (at.max(place), end.min(place + HASH_CHARS as u64));
        bytes[(from - at) as usize..(to - at) as usize]
            .copy_from_slice(&PLACEHOLDER[(from - place) as usize..(to - place) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::archive::write_nar;

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
            let whole = write_nar(root, Vec::new()).unwrap();
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
    }

    #[test]
    fn chunks_that_changed_on_disk_are_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::write(&root, vec![b'x'; 5000]).unwrap();
        let whole = write_nar(&root, Vec::new()).unwrap();
        let piece = |bytes: &[u8]| Piece { id: ChunkId::of(bytes), len: bytes.len() as u32 };
        let (one, other) = whole.split_at(2000);
        let recipe = Recipe { pieces: vec![piece(one), piece(other)], positions: Vec::new() };
        let view = ChunkView::open(&root, &recipe).unwrap().unwrap();
        assert!(view.chunk(recipe.pieces[0], 0).as_deref() == Some(one));
        assert!(view.chunk(recipe.pieces[1], 2000).as_deref() == Some(other));
        fs::write(&root, vec![b'y'; 5000]).unwrap();
        assert_eq!(view.chunk(recipe.pieces[1], 2000), None);
        fs::write(&root, vec![b'x'; 4000]).unwrap();
        assert!(ChunkView::open(&root, &recipe).unwrap().is_none());
    }
}
