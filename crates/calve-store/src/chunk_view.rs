//! Chunks read from the files of a path that is there: so they need not be fetched.

use std::path::{Path, PathBuf};

use calve_nix::store_path::HASH_CHARS;
use calve_tree::NarView;

use crate::StoreError;
use crate::chunk::ChunkId;
use crate::normal::{PLACEHOLDER, overlap};
use crate::recipe::{Piece, Position, Recipe};

/// Hash parts in one file that are compared with others one by one.
const HASHES_MAX: usize = 1024;

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
        StoreError::Changed { path: self.nar.root().to_owned() }
    }

    /// The plain bytes of a chunk that begins at byte `at` of the archive; none where they are no longer there.
    pub fn chunk(&self, piece: Piece, at: u64) -> Option<Vec<u8>> {
        self.unchecked(piece.len, at).ok().filter(|bytes| ChunkId::of(bytes) == piece.id)
    }

    /// What lies where a chunk of so many bytes was, for whoever finds out whether it is that still.
    pub(crate) fn unchecked(&self, len: u32, at: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len as usize];
        self.nar.read_at(&mut bytes, at)?;
        blank(&mut bytes, at, &self.places);
        Ok(bytes)
    }

    /// The file whose contents were the `size` bytes from byte `at` of the archive, if these hash parts lie in it, each at
    /// its place, and no others that are not in its chunks.
    pub(crate) fn file<'a>(
        &self,
        at: u64,
        size: u64,
        hashes: impl Iterator<Item = (usize, &'a [u8])>,
    ) -> Option<PathBuf> {
        let file = self.nar.file(at, size)?;
        let mut places = places_in(&self.places, at, at + size);
        for (n, (place, part)) in hashes.enumerate() {
            let (place, mut here) = (at + place as u64, [0; HASH_CHARS]);
            let is_same = n < HASHES_MAX
                && places.next() == Some(place)
                && self.nar.read_at(&mut here, place).is_ok()
                && here == part;
            if !is_same {
                return None;
            }
        }
        places.next().is_none().then_some(file)
    }
}

/// Those of `places` whose hash parts lie, also in part, between two bytes of the archive.
fn places_in(places: &[u64], at: u64, end: u64) -> impl Iterator<Item = u64> {
    let first = places.partition_point(|place| place + HASH_CHARS as u64 <= at);
    places[first..].iter().copied().take_while(move |place| *place < end)
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
    for place in places_in(places, at, end) {
        let (from, part) = overlap(place, at, end);
        bytes[from..from + part.len()].copy_from_slice(&PLACEHOLDER[part]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::archive::write_nar;

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
