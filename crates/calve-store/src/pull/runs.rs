//! Runs: chunks of a path that lie one behind the other in another path as well. The index knows one place of each chunk;
//! where a chunk lies here more than once, the place among its neighbours' is read without a leap, and files whose chunks
//! are one run are known to be equal.

use std::collections::HashMap;

use super::plan::Origin;
use crate::index::{ChunkPlace, LocalIndex};
use crate::recipe::{Piece, Recipe};

/// Chunks of a run that is moved at most: where all chunks are alike, each could move all before it.
const MOVED_MAX: usize = 1024;

/// Chooses, where there is a choice, places in the recipe that most of the path's local bytes come from.
pub(super) fn join_runs(recipe: &Recipe, origins: &mut [Origin], index: &LocalIndex) -> rusqlite::Result<()> {
    let Some(number) = most_used(origins) else { return Ok(()) };
    let mut laid = None;
    let mut begin = 0;
    for n in 1..origins.len() {
        let (Origin::Local(before), Origin::Local(place)) = (origins[n - 1], origins[n]) else {
            begin = n;
            continue;
        };
        // An index that is damaged may say anything.
        let end = before.at.wrapping_add(u64::from(before.len));
        if (place.recipe, place.at) == (before.recipe, end) {
            continue;
        }
        if before.recipe != number && place.recipe != number {
            begin = n;
            continue;
        }
        let laid = match &laid {
            Some(laid) => laid,
            None => match index.numbered(number)? {
                Some(recipe) => laid.insert(Laid::new(number, &recipe)),
                None => return Ok(()),
            },
        };
        let run = &recipe.pieces[begin..n];
        if let Some(next) = laid.place(recipe.pieces[n], end).filter(|_| before.recipe == number) {
            origins[n] = Origin::Local(next);
        } else if let Some(places) = laid.before(place, run) {
            let moved = origins[begin..n].iter_mut().rev();
            moved.zip(places).for_each(|(origin, place)| *origin = Origin::Local(place));
        } else {
            begin = n;
        }
    }
    Ok(())
}

/// The recipe that most local bytes are read from.
fn most_used(origins: &[Origin]) -> Option<i64> {
    let mut bytes: HashMap<i64, u64> = HashMap::new();
    for origin in origins {
        if let Origin::Local(place) = origin {
            *bytes.entry(place.recipe).or_default() += u64::from(place.len);
        }
    }
    bytes.into_iter().max_by_key(|(number, bytes)| (*bytes, *number)).map(|(number, _)| number)
}

/// A recipe whose chunks are found by where they begin.
struct Laid {
    number: i64,
    pieces: HashMap<u64, Piece>,
}

impl Laid {
    fn new(number: i64, recipe: &Recipe) -> Self {
        let mut at = 0;
        let pieces = recipe.pieces.iter().map(|piece| {
            let begin = at;
            at += u64::from(piece.len);
            (begin, *piece)
        });
        Self { number, pieces: pieces.collect() }
    }

    /// The place at byte `at`, if this chunk lies there.
    fn place(&self, piece: Piece, at: u64) -> Option<ChunkPlace> {
        let is_there = self.pieces.get(&at) == Some(&piece);
        is_there.then_some(ChunkPlace { recipe: self.number, at, len: piece.len })
    }

    /// Places right before `place` for all of a run, its last chunk first.
    fn before(&self, place: ChunkPlace, run: &[Piece]) -> Option<Vec<ChunkPlace>> {
        if place.recipe != self.number || run.len() > MOVED_MAX {
            return None;
        }
        let mut at = place.at;
        let places = run.iter().rev().map(|piece| {
            at = at.checked_sub(u64::from(piece.len))?;
            self.place(*piece, at)
        });
        places.collect()
    }
}

#[cfg(test)]
mod tests {
    use calve_nix::{Sha256Hash, StorePath};

    use super::*;
    use crate::chunk::ChunkId;

    const LEN: u32 = 10;

    fn recipe(chunks: &str) -> Recipe {
        let piece = |c: char| Piece { id: ChunkId::of(c.to_string().as_bytes()), len: LEN };
        Recipe { pieces: chunks.chars().map(piece).collect(), positions: vec![] }
    }

    /// Where a path of the chunks `wanted` is read from where one of the chunks `here` lies here: which of them, or `.`.
    fn read(here: &str, wanted: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(&dir.path().join("index")).unwrap();
        let path = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello").unwrap();
        let (old, new, hash) = (recipe(here), recipe(wanted), Sha256Hash::of(b""));
        index.record([(&path, &hash, old.id(), &old)].into_iter()).unwrap();
        let found = index.find(new.pieces.iter().map(|piece| &piece.id)).unwrap();
        let origin = |piece: &Piece| found.get(&piece.id).map_or(Origin::Fetched, |at| Origin::Local(*at));
        let mut origins: Vec<_> = new.pieces.iter().map(origin).collect();
        join_runs(&new, &mut origins, &index).unwrap();
        let shown = origins.iter().map(|origin| match origin {
            Origin::Local(place) => (place.at / u64::from(LEN)).to_string(),
            _ => ".".to_owned(),
        });
        shown.collect()
    }

    #[test]
    fn chunks_are_read_among_their_neighbours() {
        assert_eq!(read("habcabc", "habcabc"), ["0", "1", "2", "3", "4", "5", "6"]);
        assert_eq!(read("haaaaz", "haaaaz"), ["0", "1", "2", "3", "4", "5"]);
    }

    #[test]
    fn a_run_moves_as_a_whole_to_what_follows_it() {
        assert_eq!(read("habcxabc", "Nabcx"), [".", "1", "2", "3", "4"]);
        // What is before it stays where it is, as `b` alone has a place before `x`.
        assert_eq!(read("abcbxabc", "Nabx"), [".", "5", "6", "4"]);
    }
}
