//! Cuts that need not be looked for: those of an archive that is known here and goes on alike.
//!
//! Where a cut lies follows from the bytes of its chunk and the one behind. So where a chunk was found that a known recipe has
//! too, the bytes behind it are hashed up to that recipe's next cut, and as long as these are the same chunks nobody searches.

use super::{Masks, ends_behind};
use crate::chunk::ChunkId;
use crate::index::LocalIndex;
use crate::recipe::Recipe;

/// Most chunks that are not looked up between two that are, where nothing is known: each costs some microseconds.
pub(super) const PAUSE_MAX: usize = 64;
/// Most recipes that are read for one archive: each costs milliseconds, if it is a large one.
const RECIPES_MAX: usize = 64;

/// What is known of the archive that is cut.
pub struct Foretold<'a> {
    index: &'a LocalIndex,
    followed: Option<Followed>,
    /// Recipes that were read.
    recipes: usize,
    /// The piece of the one that is followed that should come next.
    next: Option<usize>,
    /// Chunks that are not looked up, now and after the next one that is not known.
    pause: usize,
    next_pause: usize,
}

/// A recipe whose cuts are expected.
struct Followed {
    /// Its number in the index.
    number: i64,
    recipe: Recipe,
    /// Where each of its pieces begins.
    begins: Vec<u64>,
}

impl<'a> Foretold<'a> {
    /// By the recipes of this index. What it does not say, or says wrongly, is searched.
    pub fn new(index: &'a LocalIndex) -> Self {
        Self { index, followed: None, recipes: 0, next: None, pause: 0, next_pause: 1 }
    }

    /// The chunk that these bytes begin with, if it is the one that should come next: its length and id.
    pub(super) fn next_chunk(&mut self, bytes: &[u8], masks: Masks) -> Option<(usize, ChunkId)> {
        let next = self.next.take()?;
        // The last chunk ends with its archive, and not where its bytes say so.
        let [piece, _, ..] = self.followed.as_ref()?.recipe.pieces.get(next..)? else { return None };
        let chunk = bytes.get(..piece.len as usize)?;
        if ChunkId::of(chunk) != piece.id || !ends_behind(bytes, chunk.len(), masks) {
            return None;
        }
        self.next = Some(next + 1);
        Some((chunk.len(), piece.id))
    }

    /// Looks for a recipe with a chunk that was cut by its bytes; gives its id, if it was not left alone.
    pub(super) fn look_up(&mut self, chunk: &[u8]) -> Option<ChunkId> {
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        let id = ChunkId::of(chunk);
        self.next = self.piece_behind(&id);
        if self.next.is_some() {
            self.next_pause = 1;
        } else {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        }
        Some(id)
    }

    fn piece_behind(&mut self, id: &ChunkId) -> Option<usize> {
        let place = *self.index.find([id].into_iter()).ok()?.get(id)?;
        if self.followed.as_ref().is_none_or(|followed| followed.number != place.recipe) {
            if self.recipes == RECIPES_MAX {
                return None;
            }
            self.recipes += 1;
            self.followed = Some(Followed::new(place.recipe, self.index.numbered(place.recipe).ok()??));
        }
        let piece = self.followed.as_ref()?.begins.binary_search(&place.at).ok()?;
        Some(piece + 1)
    }
}

impl Followed {
    fn new(number: i64, recipe: Recipe) -> Self {
        let mut at = 0;
        let begin = |len: u32| {
            let begin = at;
            at += u64::from(len);
            begin
        };
        let begins = recipe.pieces.iter().map(|piece| piece.len).map(begin).collect();
        Self { number, recipe, begins }
    }
}
