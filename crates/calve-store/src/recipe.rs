//! Recipes: how an archive is put together from chunks.

use std::fmt;

use calve_nix::store_path::HASH_CHARS;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::chunk::{CHUNK_MAX, ChunkId};

/// Most chunks of one archive: 16 TiB of them.
pub const RECIPE_CHUNKS_MAX: usize = 1 << 28;
/// Most bytes of an encoded recipe that anybody reads.
pub const RECIPE_BYTES_MAX: usize = 1 << 30;

/// Most places of hash parts in one archive: 128 MiB of nothing else. They take 64 MiB in memory, and two bytes each on the
/// wire; further hash parts stay in the chunks.
pub const POSITIONS_MAX: usize = 1 << 22;

/// The BLAKE3 hash of an encoded recipe's plain bytes. A rebuild that changes only the hashes in its references has the
/// same recipe.
pub type RecipeId = ChunkId;

/// One chunk of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The chunk.
    pub id: ChunkId,
    /// Length of its plain bytes, 1 to [`CHUNK_MAX`].
    pub len: u32,
}

/// A place of the archive in which the hash part of a reference stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Bytes behind the end of the position before, or behind the archive's beginning.
    pub skip: u64,
    /// Which of [`crate::PathInfo::counted_references`].
    pub reference: u32,
}

/// How an archive is put together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The chunks, in order.
    pub pieces: Vec<Piece>,
    /// Where the hash parts of references go, in order.
    #[serde(deserialize_with = "positions")]
    pub positions: Vec<Position>,
}

/// Why bytes are no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the recipe is damaged: {0}")]
pub struct RecipeError(pub String);

impl Recipe {
    /// Size of the archive in bytes.
    pub fn nar_size(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }

    /// The plain bytes that are hashed, stored and sent (postcard, with a version in front).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_allocvec(self).expect("a recipe is plain data"));
        bytes
    }

    /// The recipe of [`Recipe::encode`], checked: sizes in their limits, positions inside of the archive.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecipeError> {
        let (version, rest) = bytes.split_first().ok_or_else(|| RecipeError("it is empty".to_owned()))?;
        if *version != VERSION {
            return Err(RecipeError(format!(
                "it has version {version}, and this calve reads version {VERSION}"
            )));
        }
        let recipe: Self = postcard::from_bytes(rest).map_err(|error| RecipeError(error.to_string()))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The id of [`Recipe::encode`].
    pub fn id(&self) -> RecipeId {
        ChunkId::of(&self.encode())
    }

    fn check(&self) -> Result<(), RecipeError> {
        if self.pieces.len() > RECIPE_CHUNKS_MAX {
            return Err(RecipeError(format!("it has {} chunks", self.pieces.len())));
        }
        if let Some(piece) = self.pieces.iter().find(|piece| piece.len == 0 || piece.len > CHUNK_MAX) {
            return Err(RecipeError(format!("a chunk of {} bytes", piece.len)));
        }
        let mut end: u64 = 0;
        for position in &self.positions {
            end = end
                .checked_add(position.skip)
                .and_then(|begin| begin.checked_add(HASH_CHARS as u64))
                .ok_or_else(|| RecipeError("a position beyond all archives".to_owned()))?;
        }
        if end > self.nar_size() {
            return Err(RecipeError("a position behind its end".to_owned()));
        }
        Ok(())
    }
}

/// At most [`POSITIONS_MAX`] of them, of which no further one is read.
fn positions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Position>, D::Error> {
    struct Limited;
    impl<'de> Visitor<'de> for Limited {
        type Value = Vec<Position>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("places of hash parts")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut positions = Vec::new();
            while let Some(position) = items.next_element()? {
                if positions.len() == POSITIONS_MAX {
                    return Err(A::Error::custom("too many places of hash parts"));
                }
                positions.push(position);
            }
            Ok(positions)
        }
    }
    deserializer.deserialize_seq(Limited)
}

/// The only version that there is so far.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let piece = |text: &str, len| Piece { id: ChunkId::of(text.as_bytes()), len };
        let positions = vec![Position { skip: 3, reference: 1 }, Position { skip: 0, reference: 0 }];
        Recipe { pieces: vec![piece("a", 60), piece("b", 40)], positions }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(Recipe::decode(&recipe().encode()), Ok(recipe()));
        assert_eq!(recipe().nar_size(), 100);
    }

    #[test]
    fn a_recipe_of_few_bytes_takes_no_gigabytes() {
        let mut recipe =
            Recipe { pieces: vec![Piece { id: ChunkId([0; 32]), len: CHUNK_MAX }; 600], ..recipe() };
        recipe.positions = vec![Position { skip: 0, reference: 0 }; POSITIONS_MAX];
        assert!(Recipe::decode(&recipe.encode()).is_ok());
        recipe.positions.push(recipe.positions[0]);
        assert!(Recipe::decode(&recipe.encode()).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let changed = |change: fn(&mut Recipe)| {
            let mut recipe = recipe();
            change(&mut recipe);
            Recipe::decode(&recipe.encode()).unwrap_err().to_string()
        };
        assert!(changed(|r| r.positions[0].skip = 40).contains("behind its end"));
        assert!(changed(|r| r.positions[0].skip = u64::MAX).contains("beyond all archives"));
        assert!(changed(|r| r.pieces[0].len = 0).contains("a chunk of 0 bytes"));
        assert!(Recipe::decode(&[]).unwrap_err().to_string().contains("empty"));
        assert!(Recipe::decode(&[9]).unwrap_err().to_string().contains("version 9"));
        let encoded = recipe().encode();
        assert!(Recipe::decode(&encoded[..encoded.len() - 1]).is_err());
    }
}
