//! Trees on disk as Nix archives: written out, hashed, or hashed while they are copied.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use calve_nix::{HashWriter, NarWriter, Sha256Hash};
use calve_tree::{Node, Opener, Walk, is_executable, nar_error};

use crate::StoreError;

/// Writes the archive of the tree at `path` (not followed, if it is a symbolic link) and gives `out` back.
/// Streams: memory does not grow with the sizes of files.
pub fn write_nar<W: Write>(path: &Path, out: W) -> Result<W, StoreError> {
    archive(path, out, &mut NoCopy)
}

/// Hash and size in bytes of the archive of the tree at `path`.
pub fn hash_tree(path: &Path) -> Result<(Sha256Hash, u64), StoreError> {
    Ok(write_nar(path, HashWriter::default())?.finish())
}

/// What is done with a tree besides archiving it.
pub(crate) trait Copy {
    /// A directory begins.
    fn enter(&mut self, name: &[u8]) -> Result<(), StoreError>;
    /// The directory that began last ends.
    fn leave(&mut self) -> Result<(), StoreError>;
    /// A file begins whose bytes go into the writer.
    fn file(&mut self, name: &[u8]) -> Result<impl Write, StoreError>;
    /// The file that began last has all its bytes.
    fn file_end(&mut self, executable: bool) -> Result<(), StoreError>;
    /// A symbolic link.
    fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), StoreError>;
}

/// Archives the tree at `path` into `out` and hands every node to `copy`, reading each file once.
pub(crate) fn archive<W: Write>(path: &Path, out: W, copy: &mut impl Copy) -> Result<W, StoreError> {
    let mut nar = NarWriter::new(out).map_err(|error| nar_error(error, path))?;
    let mut files = Opener::default();
    for step in Walk::new(path) {
        let step = step?;
        let done = match &step.node {
            Node::Enter => {
                copy.enter(&step.name)?;
                nar.begin_directory(&step.name)
            }
            Node::Leave => {
                copy.leave()?;
                nar.end_directory()
            }
            Node::Symlink(target) => {
                copy.symlink(&step.name, target)?;
                nar.symlink(&step.name, target)
            }
            Node::File => {
                let (source, metadata) = files.open(&step.path)?;
                let executable = is_executable(&metadata);
                let mut tee = Tee { source, copy: copy.file(&step.name)? };
                let done = nar.file(&step.name, executable, metadata.len(), &mut tee);
                drop(tee);
                done.map_err(|error| nar_error(error, &step.path))?;
                copy.file_end(executable)?;
                continue;
            }
        };
        done.map_err(|error| nar_error(error, &step.path))?;
    }
    nar.finish().map_err(|error| nar_error(error, path).into())
}

struct Tee<W> {
    source: File,
    copy: W,
}

impl<W: Write> Read for Tee<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.copy.write_all(&buffer[..read])?;
        Ok(read)
    }
}

struct NoCopy;

impl Copy for NoCopy {
    fn enter(&mut self, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
    fn leave(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn file(&mut self, _: &[u8]) -> Result<impl Write, StoreError> {
        Ok(io::sink())
    }
    fn file_end(&mut self, _: bool) -> Result<(), StoreError> {
        Ok(())
    }
    fn symlink(&mut self, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}
