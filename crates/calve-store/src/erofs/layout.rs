//! Which byte of the image everything gets.

use super::format::{BLOCK_BYTES, SLOT_BYTES, inode_bytes};

/// Blocks in which room for further inodes is looked for: enough that little is wasted, few enough that inodes of one
/// directory stay close together.
const OPEN_BLOCKS_MAX: usize = 32;

/// Where an inode and its contents go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Byte of the image at which the inode lies.
    pub inode_at: u64,
    /// Whole blocks of contents, that is without an inline tail.
    pub blocks: u64,
    /// Whether the rest of the contents lies behind the inode.
    pub inline_tail: bool,
}

/// Gives inodes their places in the order in which they come.
#[derive(Debug)]
pub struct Layout {
    /// Open blocks as their number and the first free byte in them.
    open: Vec<(u64, u64)>,
    next_block: u64,
}

impl Layout {
    /// A layout whose inodes begin at block `first_block`.
    pub fn new(first_block: u64) -> Self {
        Self { open: Vec::new(), next_block: first_block }
    }

    /// Gives the next inode its place. Block 1 holds the first, and so on: the first inode comes first.
    pub fn place(&mut self, size: u64, nlink: u32) -> Place {
        let inode = inode_bytes(size, nlink);
        let tail = size % BLOCK_BYTES;
        // Inode and inline tail must lie in one block.
        let inline_tail = tail > 0 && inode + tail <= BLOCK_BYTES;
        let needed = if inline_tail { inode + tail } else { inode };
        let blocks = if inline_tail { size / BLOCK_BYTES } else { size.div_ceil(BLOCK_BYTES) };
        Place { inode_at: self.take(needed), blocks, inline_tail }
    }

    /// The first block after all inodes.
    pub fn end_block(&self) -> u64 {
        self.next_block
    }

    /// Takes room from the open block that it fills best, or from a new one.
    fn take(&mut self, bytes: u64) -> u64 {
        let fitting =
            self.open.iter_mut().filter(|(_, used)| used.next_multiple_of(SLOT_BYTES) + bytes <= BLOCK_BYTES);
        if let Some((block, used)) = fitting.max_by_key(|(_, used)| *used) {
            let at = used.next_multiple_of(SLOT_BYTES);
            *used = at + bytes;
            return *block * BLOCK_BYTES + at;
        }
        if self.open.len() == OPEN_BLOCKS_MAX {
            let fullest = (0..self.open.len()).max_by_key(|i| self.open[*i].1).expect("not empty");
            self.open.swap_remove(fullest);
        }
        let block = self.next_block;
        self.next_block += 1;
        self.open.push((block, bytes));
        block * BLOCK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placed(size: u64) -> (u64, bool) {
        let place = Layout::new(1).place(size, 1);
        (place.blocks, place.inline_tail)
    }

    #[test]
    fn sizes_around_the_block_are_split_right() {
        assert_eq!(placed(0), (0, false));
        assert_eq!(placed(1), (0, true));
        assert_eq!(placed(4064), (0, true));
        // Together with the inode it would exceed the block.
        assert_eq!(placed(4065), (1, false));
        assert_eq!(placed(4095), (1, false));
        assert_eq!(placed(4096), (1, false));
        assert_eq!(placed(4097), (1, true));
        assert_eq!(placed((5 << 30) + 1), (5 << 18, true));
        assert_eq!(placed((5 << 30) + 4064), ((5 << 18) + 1, false));
    }

    proptest! {
        #[test]
        fn inodes_lie_apart_and_within_their_blocks(sizes: Vec<(u16, u8)>) {
            let mut layout = Layout::new(1);
            let mut taken = Vec::new();
            for (size, links) in sizes {
                let (size, nlink) = (u64::from(size), u32::from(links) * 300);
                let place = layout.place(size, nlink);
                let tail = if place.inline_tail { size % BLOCK_BYTES } else { 0 };
                let end = place.inode_at + inode_bytes(size, nlink) + tail;
                prop_assert_eq!(place.inode_at % SLOT_BYTES, 0);
                prop_assert_eq!(place.inode_at / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
                prop_assert_eq!(place.blocks * BLOCK_BYTES + tail >= size, true);
                taken.push((place.inode_at, end));
            }
            prop_assert!(taken.first().is_none_or(|first| first.0 == BLOCK_BYTES));
            taken.sort_unstable();
            prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert!(taken.last().is_none_or(|last| last.1 <= layout.end_block() * BLOCK_BYTES));
        }
    }
}
