//! Archives without the hash parts of their references.
//!
//! When a dependency deep below changes, every path above it gets a new hash part, and the bytes of each change only where
//! they name one. Archives are therefore cut and stored with these places filled by [`PLACEHOLDER`], and a
//! [`Recipe`](crate::recipe::Recipe) lists what stood there.
//!
//! ```text
//! archive      …/nix/store/⟨32 characters⟩-glibc-2.40/lib…      ─ Normaliser ─▶
//! normalised   …/nix/store/eeeeeeeeeeeeee…-glibc-2.40/lib…  +  Position { skip, reference }
//!                                                               ◀─ Restorer ──
//! ```

use std::collections::HashMap;
use std::ops::Range;

use calve_nix::StorePath;
use calve_nix::store_path::{BASE32_ALPHABET, HASH_CHARS};

use crate::recipe::{POSITIONS_MAX, Position, RecipeError};

/// What stands for a hash part; `e` is not in Nix's base32, so that normalised bytes hold no hash part of their own.
pub const PLACEHOLDER: [u8; HASH_CHARS] = [b'e'; HASH_CHARS];

/// Whether a byte can be part of a hash part.
const IN_HASH: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < BASE32_ALPHABET.len() {
        table[BASE32_ALPHABET[i] as usize] = true;
        i += 1;
    }
    table
};

/// Finds the hash parts of references in an archive that passes by, and replaces them.
pub struct Normaliser {
    references: HashMap<[u8; HASH_CHARS], u32>,
    /// How they begin: texts are full of what could be a hash part.
    begins: Begins,
    /// Bytes behind the last position's end that are final.
    skip: u64,
    positions: Vec<Position>,
    /// Most positions; hash parts behind them stay.
    positions_max: usize,
}

impl Normaliser {
    /// For an archive whose path has these references, in the order of
    /// [`PathInfo::counted_references`](crate::PathInfo::counted_references).
    pub fn new(references: &[&StorePath]) -> Self {
        let mut by_hash = HashMap::with_capacity(references.len());
        let mut begins = Begins::default();
        for (count, path) in (0..).zip(references) {
            let hash = hash_part(path);
            begins.add(&hash);
            by_hash.entry(hash).or_insert(count);
        }
        Self { references: by_hash, begins, skip: 0, positions: Vec::new(), positions_max: POSITIONS_MAX }
    }

    /// Normalises `bytes` in place, which begin at the archive's first byte that is not final yet. Gives how many of
    /// them, from the first, are final now: all if they are the archive's `last`, else all but fewer than 32, which are to
    /// be handed over again with what follows them.
    pub fn normalise(&mut self, bytes: &mut [u8], last: bool) -> usize {
        let mut at = 0;
        let mut position_end = None;
        if !self.is_done() {
            while let Some(window) = bytes.get_mut(at..at + HASH_CHARS) {
                let window: &mut [u8; HASH_CHARS] = window.try_into().expect("of this length");
                // From the back: one character that no hash part has rules out every window that holds it. Mostly it is the
                // last one.
                if !IN_HASH[usize::from(window[HASH_CHARS - 1])] {
                    at += HASH_CHARS;
                    continue;
                }
                if let Some(bad) = window.iter().rposition(|byte| !IN_HASH[usize::from(*byte)]) {
                    at += bad + 1;
                    continue;
                }
                let reference = self.begins.may_have(window).then(|| self.references.get(window)).flatten();
                let Some(&reference) = reference else {
                    at += 1;
                    continue;
                };
                *window = PLACEHOLDER;
                let skip = (at - position_end.unwrap_or(0)) as u64;
                let skip = if position_end.is_none() { self.skip + skip } else { skip };
                self.positions.push(Position { skip, reference });
                at += HASH_CHARS;
                position_end = Some(at);
                if self.is_done() {
                    break;
                }
            }
        }
        let end = if last || self.is_done() { bytes.len() } else { at.min(bytes.len()) };
        match position_end {
            Some(position_end) => self.skip = (end - position_end) as u64,
            None => self.skip += end as u64,
        }
        end
    }

    /// Whether no further hash part is replaced.
    fn is_done(&self) -> bool {
        self.references.is_empty() || self.positions.len() >= self.positions_max
    }

    /// Where hash parts stood so far: all that begin in bytes that are final.
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// Where hash parts stood, once all bytes were final.
    pub fn finish(self) -> Vec<Position> {
        self.positions
    }
}

/// A set of how hash parts begin that may have more than was added: 65,536 bits by their first characters.
struct Begins(Box<[u64; 1024]>);

impl Default for Begins {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl Begins {
    fn add(&mut self, hash: &[u8; HASH_CHARS]) {
        let (word, bit) = Self::place(hash);
        self.0[word] |= bit;
    }

    fn may_have(&self, hash: &[u8; HASH_CHARS]) -> bool {
        let (word, bit) = Self::place(hash);
        self.0[word] & bit != 0
    }

    /// Word and bit. Multiplying mixes four characters, 20 bits, into the upper sixteen.
    fn place(hash: &[u8; HASH_CHARS]) -> (usize, u64) {
        let begin = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let mixed = begin.wrapping_mul(0x9e37_79b1) >> 16;
        ((mixed >> 6) as usize, 1 << (mixed & 63))
    }
}

/// Puts hash parts back into normalised bytes, at any place of the archive.
#[derive(Debug, Clone)]
pub struct Restorer {
    /// Where hash parts begin in the archive, ascending, and which.
    places: Vec<(u64, u32)>,
    hashes: Vec<[u8; HASH_CHARS]>,
}

impl Restorer {
    /// For an archive with these positions, of a path with these references in the order of
    /// [`PathInfo::counted_references`](crate::PathInfo::counted_references).
    pub fn new(positions: &[Position], references: &[&StorePath]) -> Result<Self, RecipeError> {
        let hashes = references.iter().map(|path| hash_part(path)).collect();
        let mut restorer = Self { places: Vec::with_capacity(positions.len()), hashes };
        restorer.extend(positions)?;
        Ok(restorer)
    }

    /// Takes further positions, behind those that it has.
    pub fn extend(&mut self, positions: &[Position]) -> Result<(), RecipeError> {
        let mut end = self.places.last().map_or(0, |(begin, _)| begin + HASH_CHARS as u64);
        for position in positions {
            if position.reference as usize >= self.hashes.len() {
                return Err(RecipeError(format!(
                    "it speaks of reference {} of a path that has {}",
                    position.reference,
                    self.hashes.len()
                )));
            }
            let begin = end.checked_add(position.skip);
            let next = begin.and_then(|begin| begin.checked_add(HASH_CHARS as u64));
            let (Some(begin), Some(next)) = (begin, next) else {
                return Err(RecipeError("a position beyond all archives".to_owned()));
            };
            self.places.push((begin, position.reference));
            end = next;
        }
        Ok(())
    }

    /// How many positions it has.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of the archive before its `n`th position, counted from 0.
    pub fn begin_of(&self, n: usize) -> Option<u64> {
        self.places.get(n).map(|(begin, _)| *begin)
    }

    /// Restores `bytes`, which begin at byte `at` of the archive; hash parts that reach over their borders are restored as
    /// far as they lie inside.
    pub fn restore(&self, bytes: &mut [u8], at: u64) {
        for (from, hash) in self.hashes_in(at, bytes.len() as u64) {
            bytes[from..from + hash.len()].copy_from_slice(hash);
        }
    }

    /// The hash parts that lie in the `len` bytes from byte `at` of the archive, each behind its place in them; of those that
    /// reach over the borders, what lies inside.
    pub fn hashes_in(&self, at: u64, len: u64) -> impl Iterator<Item = (usize, &[u8])> {
        let end = at + len;
        let behind = &self.places[self.first_behind(at)..];
        behind.iter().take_while(move |(place, _)| *place < end).map(move |&(place, reference)| {
            let (from, part) = overlap(place, at, end);
            (from, &self.hashes[reference as usize][part])
        })
    }

    /// Whether any hash part lies, also in part, in the `len` bytes from byte `at` of the archive.
    pub fn touches(&self, at: u64, len: u64) -> bool {
        self.places.get(self.first_behind(at)).is_some_and(|(place, _)| *place < at + len)
    }

    /// The first place that ends behind byte `at`.
    fn first_behind(&self, at: u64) -> usize {
        self.places.partition_point(|(place, _)| place + HASH_CHARS as u64 <= at)
    }
}

/// What the hash part at byte `place` of an archive and its bytes from `at` to `end` have in common: where it begins in these
/// bytes, and which characters of the hash part it is.
pub(crate) fn overlap(place: u64, at: u64, end: u64) -> (usize, Range<usize>) {
    let (from, to) = (at.max(place), end.min(place + HASH_CHARS as u64));
    ((from - at) as usize, (from - place) as usize..(to - place) as usize)
}

fn hash_part(path: &StorePath) -> [u8; HASH_CHARS] {
    path.hash_part().as_bytes().try_into().expect("hash parts have this length")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn path(seed: u8) -> StorePath {
        let hash: String = (0..HASH_CHARS)
            .map(|i| char::from(BASE32_ALPHABET[(usize::from(seed) * 7 + i * i) % 32]))
            .collect();
        StorePath::from_base_name(&format!("{hash}-p{seed}")).unwrap()
    }

    /// Normalises `archive` as a stream of pieces of these sizes, in turn.
    fn normalise(archive: &[u8], references: &[&StorePath], sizes: &[usize]) -> (Vec<u8>, Vec<Position>) {
        let mut normaliser = Normaliser::new(references);
        let (mut out, mut held, mut rest) = (Vec::new(), Vec::new(), archive);
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            held.extend_from_slice(piece);
            let done = normaliser.normalise(&mut held, rest.is_empty());
            out.extend(held.drain(..done));
            assert!(held.len() < HASH_CHARS);
            if rest.is_empty() {
                break;
            }
        }
        (out, normaliser.finish())
    }

    #[derive(Debug, Clone)]
    enum Part {
        Bytes(Vec<u8>),
        Base32(usize),
        Reference(u8),
        Cut(u8, usize),
    }

    fn archive() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            vec(any::<u8>(), 0..80).prop_map(Part::Bytes),
            (0_usize..70).prop_map(Part::Base32),
            (0_u8..5).prop_map(Part::Reference),
            (0_u8..5, 1_usize..HASH_CHARS).prop_map(|(seed, len)| Part::Cut(seed, len)),
        ];
        vec(part, 0..30).prop_map(|parts| {
            let bytes = parts.into_iter().flat_map(|part| match part {
                Part::Bytes(bytes) => bytes,
                Part::Base32(len) => BASE32_ALPHABET.iter().cycle().take(len).copied().collect(),
                Part::Reference(seed) => path(seed).hash_part().as_bytes().to_vec(),
                Part::Cut(seed, len) => path(seed).hash_part().as_bytes()[..len].to_vec(),
            });
            bytes.collect()
        })
    }

    proptest! {
        #[test]
        fn restored_archives_are_what_was_normalised(
            archive in archive(),
            sizes in vec(1_usize..100, 1..5),
            chunks in vec(1_usize..100, 1..5),
        ) {
            let paths = [path(0), path(1), path(2)];
            let references: Vec<_> = paths.iter().collect();
            let (normal, positions) = normalise(&archive, &references, &sizes);
            prop_assert_eq!(&normalise(&archive, &references, &[1 << 20]), &(normal.clone(), positions.clone()));
            for path in &paths {
                let hash = path.hash_part().as_bytes();
                prop_assert!(!normal.windows(HASH_CHARS).any(|window| window == hash));
            }
            let restorer = Restorer::new(&positions, &references).unwrap();
            let (mut at, mut chunk_sizes) = (0, chunks.iter().cycle());
            while at < normal.len() {
                let end = normal.len().min(at + chunk_sizes.next().unwrap());
                let mut chunk = normal[at..end].to_vec();
                restorer.restore(&mut chunk, at as u64);
                prop_assert_eq!(&chunk[..], &archive[at..end]);
                let touched = restorer.touches(at as u64, (end - at) as u64);
                prop_assert!(touched || chunk[..] == normal[at..end]);
                at = end;
            }
        }

        #[test]
        fn a_rebuild_that_changes_only_hashes_is_the_same(archive in archive()) {
            let (old, new) = (path(0), path(9));
            let text = |path: &StorePath| path.hash_part().as_bytes().to_vec();
            let changed = replace(&archive, &text(&old), &text(&new));
            prop_assert_eq!(normalise(&archive, &[&old], &[64]), normalise(&changed, &[&new], &[33]));
        }
    }

    fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let (mut out, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            if bytes[at..].starts_with(from) {
                out.extend_from_slice(to);
                at += from.len();
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        out
    }

    /// A recipe has a longest list of positions, wherever in a piece it is reached.
    #[test]
    fn hash_parts_behind_the_last_position_stay() {
        let path = path(0);
        let archive = format!("a{0}b{0}{0}c{0}d", path.hash_part()).into_bytes();
        let mut seen = Vec::new();
        for size in [1, 7, 33, 1000] {
            let mut normaliser = Normaliser { positions_max: 2, ..Normaliser::new(&[&path]) };
            let (mut out, mut held) = (Vec::new(), Vec::new());
            for (n, piece) in archive.chunks(size).enumerate() {
                held.extend_from_slice(piece);
                let done = normaliser.normalise(&mut held, (n + 1) * size >= archive.len());
                out.extend(held.drain(..done));
            }
            let positions = normaliser.finish();
            Restorer::new(&positions, &[&path]).unwrap().restore(&mut out, 0);
            assert!(out == archive && positions.len() == 2, "{positions:?}");
            seen.push(positions);
        }
        assert!(seen.iter().all(|positions| *positions == seen[0]));
    }

    #[test]
    fn positions_of_no_sense_are_refused() {
        let path = path(0);
        let refused = |positions: &[Position]| Restorer::new(positions, &[&path]).unwrap_err().to_string();
        assert!(refused(&[Position { skip: 0, reference: 1 }]).contains("reference 1 of a path that has 1"));
        assert!(refused(&[Position { skip: u64::MAX, reference: 0 }]).contains("beyond all archives"));
    }
}
