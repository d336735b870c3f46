//! Hash parts replaced by others of the same length in a stream.

use std::io::{self, Write};

use super::{HashPart, Needles};
use crate::store_path::HASH_CHARS;

/// Bytes that are collected before they are rewritten and passed on: enough that the seam between two blocks costs nothing.
const BLOCK_BYTES: usize = 64 * 1024;

/// Replaces every needle in what is written into it and passes the rest on unchanged, so that lengths stay. Of needles that
/// overlap, the first is replaced. [`Self::finish`] passes on what is left: without it the end is missing.
pub struct Rewriter<'a, W: Write, F: FnMut(u64, usize) -> HashPart> {
    needles: &'a Needles,
    replace: F,
    out: W,
    block: Vec<u8>,
    /// Bytes of the stream before the block.
    passed: u64,
    /// Bytes at the block's beginning that are part of a replacement: no needle begins in them.
    replaced: usize,
}

impl<'a, W: Write, F: FnMut(u64, usize) -> HashPart> Rewriter<'a, W, F> {
    /// Passes on into `out`. `replace` is given the offset and index of each needle and gives what stands there instead.
    pub fn new(needles: &'a Needles, out: W, replace: F) -> Self {
        Self { needles, replace, out, block: Vec::with_capacity(BLOCK_BYTES), passed: 0, replaced: 0 }
    }

    /// Passes on what is left and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.rewrite();
        self.pass(self.block.len())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn rewrite(&mut self) {
        while let Some((at, index)) = self.needles.find(&self.block, self.replaced) {
            let replacement = (self.replace)(self.passed + at as u64, index);
            self.block[at..at + HASH_CHARS].copy_from_slice(&replacement);
            self.replaced = at + HASH_CHARS;
        }
    }

    fn pass(&mut self, bytes: usize) -> io::Result<()> {
        self.out.write_all(&self.block[..bytes])?;
        self.block.drain(..bytes);
        self.passed += bytes as u64;
        self.replaced = self.replaced.saturating_sub(bytes);
        Ok(())
    }
}

impl<W: Write, F: FnMut(u64, usize) -> HashPart> Write for Rewriter<'_, W, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK_BYTES {
            self.rewrite();
            // A needle may begin in the last bytes and end in what is still to come.
            self.pass(BLOCK_BYTES - (HASH_CHARS - 1))?;
        }
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Flushes what was passed on already; the last bytes wait for their successors.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
