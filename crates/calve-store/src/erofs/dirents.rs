//! Contents of directories: blocks of fixed-size entries followed by their names, sorted over all blocks.
//!
//! ```text
//! | entry 0 | entry 1 | … | entry k | name 0 | name 1 | … | name k |   one block; the first name's offset tells k
//! ```

use super::format::{BLOCK_BYTES, DIRENT_BYTES};

/// An entry as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Slot of the inode.
    pub slot: u64,
    /// Its type, as an entry states it.
    pub file_type: u8,
}

/// The size of a directory with these names, in their order.
pub fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut whole = 0;
    let mut used = 0;
    for name in names {
        let needed = (DIRENT_BYTES + name.len()) as u64;
        if used + needed > BLOCK_BYTES {
            whole += BLOCK_BYTES;
            used = 0;
        }
        used += needed;
    }
    whole + used
}

/// The contents of a directory with these entries, which are sorted by name, as blocks; all but the last are padded.
pub fn blocks<'a>(entries: &'a [Dirent<'a>]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = rest.iter().take_while(|entry| {
            used += DIRENT_BYTES + entry.name.len();
            used <= BLOCK_BYTES as usize
        });
        let (block, later) = rest.split_at(fitting.count());
        rest = later;
        if block.is_empty() {
            return None;
        }
        let mut bytes = encode(block);
        if !rest.is_empty() {
            bytes.resize(BLOCK_BYTES as usize, 0);
        }
        Some(bytes)
    })
}

fn encode(entries: &[Dirent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        bytes.extend_from_slice(&entry.slot.to_le_bytes());
        bytes.extend_from_slice(&(name_offset as u16).to_le_bytes());
        bytes.extend_from_slice(&[entry.file_type, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        bytes.extend_from_slice(entry.name);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    /// The entries that a reader finds in a block.
    fn decode(block: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let number = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        let offset = |i: usize| (number(i * DIRENT_BYTES + 4) >> 32 & 0xffff) as usize;
        let count = offset(0) / DIRENT_BYTES;
        let entry = |i: usize| {
            let end = if i + 1 < count { offset(i + 1) } else { block.len() };
            let name = &block[offset(i)..end];
            let name = name.split(|byte| *byte == 0).next().unwrap();
            (name.to_vec(), number(i * DIRENT_BYTES), block[i * DIRENT_BYTES + 10])
        };
        (0..count).map(entry).collect()
    }

    proptest! {
        #[test]
        fn every_entry_is_found_again_in_order(names in btree_set(vec(1u8.., 1..=255), 0..200)) {
            let entries: Vec<_> =
                names.iter().zip(1..).map(|(name, slot)| Dirent { name, slot, file_type: 7 }).collect();
            let blocks: Vec<_> = blocks(&entries).collect();
            let bytes: usize = blocks.iter().map(Vec::len).sum();
            prop_assert_eq!(bytes as u64, size(names.iter().map(Vec::as_slice)));
            prop_assert!(blocks.iter().rev().skip(1).all(|block| block.len() as u64 == BLOCK_BYTES));
            let found: Vec<_> = blocks.iter().flat_map(|block| decode(block)).collect();
            let wanted: Vec<_> = names.iter().cloned().zip(1..).map(|(name, slot)| (name, slot, 7)).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
