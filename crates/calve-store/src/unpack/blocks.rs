//! Where an archive's bytes come from.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bytes::{Buf, Bytes};
use calve_nix::{HashWriter, Sha256Hash};

/// Bytes that are read at a time from a stream.
const READ_BYTES: usize = 256 * 1024;

/// An archive in blocks, in order.
pub trait Blocks {
    /// The next block; none behind the last. It may wait.
    fn next_block(&mut self) -> io::Result<Option<Bytes>>;

    /// A file on this host whose contents the blocks give as the `size` bytes from byte `at` of the archive, which are the
    /// next that are read of it. Whatever it is, the blocks are hashed.
    fn twin(&self, _at: u64, _size: u64) -> Option<PathBuf> {
        None
    }
}

/// The blocks of a stream.
pub struct ReadBlocks<R> {
    input: R,
}

impl<R: Read> ReadBlocks<R> {
    /// Reads `input` to its end.
    pub fn new(input: R) -> Self {
        Self { input }
    }
}

impl<R: Read> Blocks for ReadBlocks<R> {
    fn next_block(&mut self) -> io::Result<Option<Bytes>> {
        let mut block = Vec::new();
        (&mut self.input).take(READ_BYTES as u64).read_to_end(&mut block)?;
        Ok((!block.is_empty()).then(|| block.into()))
    }
}

/// Reads blocks as one stream and hashes each when it comes.
pub(super) struct BlockReader<B> {
    blocks: B,
    /// What has not been read of the current block.
    block: Bytes,
    hash: HashWriter,
    /// Bytes that the whole may still have.
    left: u64,
    failure: Option<io::Error>,
}

impl<B: Blocks> BlockReader<B> {
    /// Of `size` bytes in all.
    pub fn new(blocks: B, size: u64) -> Self {
        Self { blocks, block: Bytes::new(), hash: HashWriter::default(), left: size, failure: None }
    }

    /// Why the blocks did not come on: whoever parses them knows only that they did not.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// The hash of all that was read.
    pub fn finish(self) -> io::Result<Sha256Hash> {
        Ok(self.hash.finish().0)
    }

    /// As [`Blocks::twin`].
    pub fn twin(&self, at: u64, size: u64) -> Option<PathBuf> {
        self.blocks.twin(at, size)
    }

    /// Some of the next bytes without a copy, at most so many; none at the end.
    pub fn part(&mut self, most: usize) -> io::Result<Bytes> {
        self.fill()?;
        Ok(self.block.split_to(most.min(self.block.len())))
    }

    /// Has the next block ready where the current one is used up; nothing at the end.
    fn fill(&mut self) -> io::Result<()> {
        while self.block.is_empty() {
            let block = match self.blocks.next_block() {
                Ok(Some(block)) => block,
                Ok(None) => return Ok(()),
                Err(error) => {
                    let kind = error.kind();
                    self.failure = Some(error);
                    return Err(io::Error::new(kind, "the blocks do not come on"));
                }
            };
            // What is too much is hashed no more: it is refused as soon as it is read.
            let counted = self.left.min(block.len() as u64) as usize;
            self.left -= counted as u64;
            self.hash.write_all(&block[..counted])?;
            self.block = block;
        }
        Ok(())
    }
}

impl<B: Blocks> Read for BlockReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let taken = buffer.len().min(self.block.len());
        buffer[..taken].copy_from_slice(&self.block[..taken]);
        self.block.advance(taken);
        Ok(taken)
    }
}
