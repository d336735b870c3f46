//! Archives written.

use std::io::{self, Read, Write};

use super::{MAGIC, is_entry_name};

/// Bytes that are copied at a time: large enough for few system calls, small enough for the processor's cache.
const COPY_BYTES: usize = 128 * 1024;

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// An entry's name cannot stand in a directory.
    #[error("{0:?} cannot be the name of a directory entry")]
    BadName(String),
    /// Entries of a directory must come in the order of their bytes, each once.
    #[error("{0:?} comes out of order in its directory")]
    OutOfOrder(String),
    /// A second root, an end without a beginning, or no root at all.
    #[error("the nodes of the archive do not form one tree")]
    NotATree,
    /// A file gave fewer bytes than it was said to have.
    #[error("the file ended {missing} bytes before its size")]
    ShortFile {
        /// Bytes that were still due.
        missing: u64,
    },
    /// Reading a file or writing the archive failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes an archive node by node, depth first; names of entries are bytes in strictly ascending order.
///
/// The root is a node without a name: its `name` argument is ignored.
pub struct NarWriter<W: Write> {
    out: W,
    /// The open directories, each with the last name written in it.
    open: Vec<Vec<u8>>,
    state: State,
    buffer: Vec<u8>,
}

#[derive(PartialEq, Eq)]
enum State {
    Empty,
    Inside,
    Complete,
}

impl<W: Write> NarWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Result<Self, NarError> {
        let mut writer = Self { out, open: Vec::new(), state: State::Empty, buffer: Vec::new() };
        writer.string(MAGIC)?;
        Ok(writer)
    }

    /// Begins a directory; what follows until [`Self::end_directory`] lies in it.
    pub fn begin_directory(&mut self, name: &[u8]) -> Result<(), NarError> {
        self.begin_node(name, b"directory")?;
        self.open.push(Vec::new());
        Ok(())
    }

    /// Ends the directory that was begun last.
    pub fn end_directory(&mut self) -> Result<(), NarError> {
        self.open.pop().ok_or(NarError::NotATree)?;
        self.end_node()
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), NarError> {
        self.begin_node(name, b"symlink")?;
        self.string(b"target")?;
        self.string(target)?;
        self.end_node()
    }

    /// Writes a regular file of exactly `size` bytes, which it reads from `contents`.
    pub fn file(
        &mut self,
        name: &[u8],
        executable: bool,
        size: u64,
        contents: &mut impl Read,
    ) -> Result<(), NarError> {
        self.begin_file(name, executable, size)?;
        self.copy(size, contents)?;
        self.end_file(size)
    }

    /// Writes what stands before a file's contents. With [`Self::end_file`], for those who write the frame of an archive
    /// and leave the contents out.
    pub fn begin_file(&mut self, name: &[u8], executable: bool, size: u64) -> Result<(), NarError> {
        self.begin_node(name, b"regular")?;
        if executable {
            self.string(b"executable")?;
            self.string(b"")?;
        }
        self.string(b"contents")?;
        Ok(self.out.write_all(&size.to_le_bytes())?)
    }

    /// Writes what stands behind a file's contents of `size` bytes.
    pub fn end_file(&mut self, size: u64) -> Result<(), NarError> {
        self.pad(size)?;
        self.end_node()
    }

    /// What the archive is written to.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> Result<W, NarError> {
        if self.state != State::Complete {
            return Err(NarError::NotATree);
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn begin_node(&mut self, name: &[u8], kind: &[u8]) -> Result<(), NarError> {
        match self.open.last_mut() {
            Some(previous) => {
                check_name(previous, name)?;
                name.clone_into(previous);
                self.strings(&[b"entry", b"(", b"name", name, b"node"])?;
            }
            None if self.state == State::Empty => self.state = State::Inside,
            None => return Err(NarError::NotATree),
        }
        self.strings(&[b"(", b"type", kind])
    }

    fn end_node(&mut self) -> Result<(), NarError> {
        self.string(b")")?;
        if self.open.is_empty() {
            self.state = State::Complete;
            return Ok(());
        }
        self.string(b")")
    }

    fn copy(&mut self, size: u64, contents: &mut impl Read) -> Result<(), NarError> {
        self.buffer.resize(COPY_BYTES, 0);
        let mut missing = size;
        while missing > 0 {
            let most = missing.min(COPY_BYTES as u64) as usize;
            match contents.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(NarError::ShortFile { missing }),
                Ok(read) => {
                    self.out.write_all(&self.buffer[..read])?;
                    missing -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn strings(&mut self, strings: &[&[u8]]) -> Result<(), NarError> {
        strings.iter().try_for_each(|string| self.string(string))
    }

    fn string(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.out.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn pad(&mut self, written: u64) -> Result<(), NarError> {
        let zeros = (written.next_multiple_of(8) - written) as usize;
        Ok(self.out.write_all(&[0; 8][..zeros])?)
    }
}

fn check_name(previous: &[u8], name: &[u8]) -> Result<(), NarError> {
    let text = || String::from_utf8_lossy(name).into_owned();
    if !is_entry_name(name) {
        return Err(NarError::BadName(text()));
    }
    // No name is empty, so that the empty `previous` of a fresh directory precedes every first entry.
    if previous >= name { Err(NarError::OutOfOrder(text())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HashWriter, Sha256Hash, StorePath};

    fn small_tree(out: impl Write) -> Result<(), NarError> {
        let mut nar = NarWriter::new(out)?;
        nar.begin_directory(b"")?;
        nar.begin_directory(b"bin")?;
        nar.file(b"run", true, 10, &mut &b"#!/bin/sh\n"[..])?;
        nar.end_directory()?;
        nar.file(b"empty", false, 0, &mut io::empty())?;
        nar.symlink(b"link", b"bin/run")?;
        nar.end_directory()?;
        nar.finish()?;
        Ok(())
    }

    #[test]
    fn a_small_tree_hashes_as_nix_says() {
        let mut hash = HashWriter::default();
        small_tree(&mut hash).unwrap();
        let (hash, _) = hash.finish();
        // `nix-hash --type sha256 tree`, `nix-store --add tree` (Nix 2.8) over the same tree.
        assert_eq!(hash.to_hex(), "0afd3f13b24e9afb4ed0f5fe31b3f640954edf63ed081cec09fdb74a6b6e73a2");
        assert_eq!(
            StorePath::from_source("tree", &hash).unwrap().to_string(),
            "/nix/store/pdk55gm2dinbbzlvy25fzhgjjqjqwwzb-tree"
        );
    }

    #[test]
    fn a_file_is_length_bytes_and_padding() {
        let mut nar = NarWriter::new(Vec::new()).unwrap();
        nar.file(b"", false, 2, &mut &b"hi"[..]).unwrap();
        let bytes = nar.finish().unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(
            &bytes[bytes.len() - 32..],
            b"\x02\0\0\0\0\0\0\0hi\0\0\0\0\0\0\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0"
        );
        assert_eq!(
            Sha256Hash::of(&bytes).to_hex(),
            "2252d4b78c94e8c7ace4e3317b78bdfe64bc8e3970a64eb6d2f7c2a443c0c3fc"
        );
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let begun = || {
            let mut nar = NarWriter::new(io::sink()).unwrap();
            nar.begin_directory(b"").unwrap();
            nar
        };
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(matches!(begun().symlink(bad, b"x"), Err(NarError::BadName(_))), "{bad:?}");
        }
        let mut nar = begun();
        nar.symlink(b"b", b"x").unwrap();
        for bad in [b"b", b"a"] {
            assert!(matches!(nar.symlink(bad, b"x"), Err(NarError::OutOfOrder(_))), "{bad:?}");
        }
        let short = begun().file(b"f", false, 9, &mut &b"123"[..]);
        assert!(matches!(short, Err(NarError::ShortFile { missing: 6 })));
        assert!(matches!(begun().finish(), Err(NarError::NotATree)));
        let mut nar = begun();
        nar.end_directory().unwrap();
        assert!(matches!(nar.end_directory(), Err(NarError::NotATree)));
        assert!(matches!(nar.begin_directory(b""), Err(NarError::NotATree)));
    }
}
