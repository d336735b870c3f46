//! Hash parts of store paths in a stream of bytes: found, or replaced by others of the same length
//! (what `src/libstore/references.cc` of Nix does).
//!
//! A hash part is 32 characters of Nix base32. Runs of so many are rare in files: they are found by vector instructions,
//! and only what lies in one is compared, by a filter of bits first.

mod rewriter;
mod scanner;

pub use rewriter::Rewriter;
pub use scanner::Scanner;

use std::collections::HashMap;

use crate::base32::in_alphabet;
use crate::store_path::{HASH_CHARS, StorePath};

/// A hash part, as it stands in files.
pub type HashPart = [u8; HASH_CHARS];

/// What a search looks for. Made once, it serves any number of scanners at once.
#[derive(Debug, Clone)]
pub struct Needles {
    index: HashMap<HashPart, usize>,
    /// A bit for each value of [`slot`] that some needle has: clear for nearly all that is no needle.
    filter: Box<[u64; FILTER_BITS / 64]>,
}

/// Size of the filter: 8 KiB stay in the processor's first cache, and a closure of 1,000 paths sets 2 % of the bits.
const FILTER_BITS: usize = 1 << 16;

/// A text that cannot be looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hash part: {HASH_CHARS} characters of Nix base32")]
pub struct NoHashPart(String);

impl Needles {
    /// Looks for these hash parts; a match is told by the position in this list, for equal ones the first.
    pub fn new(parts: impl IntoIterator<Item = HashPart>) -> Result<Self, NoHashPart> {
        let mut needles = Self { index: HashMap::new(), filter: Box::new([0; FILTER_BITS / 64]) };
        for (position, part) in parts.into_iter().enumerate() {
            if !part.iter().all(|byte| in_alphabet(*byte)) {
                return Err(NoHashPart(String::from_utf8_lossy(&part).into_owned()));
            }
            needles.index.entry(part).or_insert(position);
            let slot = slot(&part);
            needles.filter[slot / 64] |= 1 << (slot % 64);
        }
        Ok(needles)
    }

    /// Looks for references to these store paths.
    pub fn of_paths<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> Self {
        Self::new(paths.into_iter().map(hash_part)).expect("store paths have hash parts")
    }

    /// The first match that begins in `bytes` at `from` or later: where it begins, and which it is.
    pub fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let mut start = from;
        loop {
            match self.walk(bytes, start)? {
                Walk::Match { at, index } => return Some((at, index)),
                Walk::Foreign { at } => start = candidate(bytes, at + 1)?,
            }
        }
    }

    /// Tries one window after the other until a needle or a byte outside the alphabet ends the walk.
    fn walk(&self, bytes: &[u8], start: usize) -> Option<Walk> {
        let first = bytes.get(start..start + HASH_CHARS)?;
        if let Some(foreign) = first.iter().rposition(|byte| !in_alphabet(*byte)) {
            return Some(Walk::Foreign { at: start + foreign });
        }
        for (at, window) in bytes[start..].windows(HASH_CHARS).enumerate() {
            let window: &HashPart = window.try_into().expect("a window is as long as a hash part");
            if !in_alphabet(window[HASH_CHARS - 1]) {
                return Some(Walk::Foreign { at: start + at + HASH_CHARS - 1 });
            }
            if let Some(index) = self.get(window) {
                return Some(Walk::Match { at: start + at, index });
            }
        }
        None
    }

    fn get(&self, part: &HashPart) -> Option<usize> {
        let slot = slot(part);
        let may_be = self.filter[slot / 64] >> (slot % 64) & 1 == 1;
        if may_be { self.index.get(part).copied() } else { None }
    }
}

/// The hash part of a store path.
pub fn hash_part(path: &StorePath) -> HashPart {
    path.hash_part().as_bytes().try_into().expect("a store path's hash part has 32 characters")
}

/// Mixes the first eight bytes into an index of the filter.
fn slot(part: &HashPart) -> usize {
    let first = u64::from_le_bytes(part[..8].try_into().expect("eight of 32"));
    // Multiplying by an odd constant with well-spread bits carries every bit into the topmost ones.
    (first.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS.trailing_zeros())) as usize
}

enum Walk {
    Match { at: usize, index: usize },
    Foreign { at: usize },
}

/// Bytes that are classified at a time, in a loop that compilers turn into vector instructions.
const CHUNK_BYTES: usize = 128;
/// A run of 32 characters holds at least one whole block of this size, wherever it begins.
const BLOCK_BYTES: usize = HASH_CHARS / 2;

/// The first place at `from` or later where 32 characters of the alphabet may begin: before or at a whole block of them.
fn candidate(bytes: &[u8], from: usize) -> Option<usize> {
    let mut foreign = [0; CHUNK_BYTES];
    let mut base = from;
    while base + HASH_CHARS <= bytes.len() {
        let chunk = &bytes[base..bytes.len().min(base + CHUNK_BYTES)];
        for (flag, byte) in foreign.iter_mut().zip(chunk) {
            *flag = u8::from(!in_alphabet(*byte));
        }
        let (blocks, _) = foreign[..chunk.len()].as_chunks::<BLOCK_BYTES>();
        if let Some(block) = blocks.iter().position(|block| u128::from_ne_bytes(*block) == 0) {
            let block = base + block * BLOCK_BYTES;
            // The run may begin in the block before, which is not whole.
            let before = &bytes[from.max(block.saturating_sub(BLOCK_BYTES))..block];
            let run = before.iter().rev().take_while(|byte| in_alphabet(**byte)).count();
            return Some(block - run);
        }
        base += blocks.len() * BLOCK_BYTES;
    }
    None
}
