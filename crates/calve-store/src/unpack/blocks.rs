//! Where an archive's bytes come from.

use std::io::{self, Read, Write};

use calve_nix::{HashWriter, Sha256Hash};

/// Bytes that are read at a time from a stream.
const READ_BYTES: usize = 256 * 1024;

/// An archive in blocks, in order.
pub trait Blocks {
    /// The next block; none behind the last. It may wait.
    fn next_block(&mut self) -> io::Result<Option<Vec<u8>>>;

    /// Takes a block back, to be filled again; to drop it is right too.
    fn recycle(&mut self, _block: Vec<u8>) {}
}

/// The blocks of a stream.
pub struct ReadBlocks<R> {
    input: R,
    spare: Vec<u8>,
}

impl<R: Read> ReadBlocks<R> {
    /// Reads `input` to its end.
    pub fn new(input: R) -> Self {
        Self { input, spare: Vec::new() }
    }
}

impl<R: Read> Blocks for ReadBlocks<R> {
    fn next_block(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut block = std::mem::take(&mut self.spare);
        block.clear();
        (&mut self.input).take(READ_BYTES as u64).read_to_end(&mut block)?;
        Ok((!block.is_empty()).then_some(block))
    }

    fn recycle(&mut self, block: Vec<u8>) {
        self.spare = block;
    }
}

/// Reads blocks as one stream and hashes each when it comes.
pub(super) struct BlockReader<B> {
    blocks: B,
    block: Vec<u8>,
    at: usize,
    hash: HashWriter,
    /// Bytes that the whole may still have.
    left: u64,
    failure: Option<io::Error>,
}

impl<B: Blocks> BlockReader<B> {
    /// Of `size` bytes in all.
    pub fn new(blocks: B, size: u64) -> Self {
        Self { blocks, block: Vec::new(), at: 0, hash: HashWriter::default(), left: size, failure: None }
    }

    /// Why the blocks did not come on: whoever parses them knows only that they did not.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// The hash of all that was read.
    pub fn finish(self) -> io::Result<Sha256Hash> {
        Ok(self.hash.finish().0)
    }

    fn fill(&mut self) -> io::Result<bool> {
        let block = match self.blocks.next_block() {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(false),
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
        self.blocks.recycle(std::mem::replace(&mut self.block, block));
        self.at = 0;
        Ok(true)
    }
}

impl<B: Blocks> Read for BlockReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let taken = buffer.len().min(self.block.len() - self.at);
        buffer[..taken].copy_from_slice(&self.block[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}
