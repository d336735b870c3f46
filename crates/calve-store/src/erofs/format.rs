//! The structures on disk, all little endian.

/// Bytes in a block; the one size that every kernel with pages of 4 KiB mounts.
pub const BLOCK_BYTES: u64 = 4096;
/// Inode numbers count slots of this many bytes.
pub const SLOT_BYTES: u64 = 32;
/// Bytes of a directory entry without its name.
pub const DIRENT_BYTES: usize = 12;
/// Where the superblock lies.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Time of everything, in seconds since the epoch, as in a Nix store.
const MTIME_SECONDS: u64 = 1;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
const CHECKSUM_AT: usize = 4;
const VOLUME_NAME: &[u8; 16] = b"calve-closure\0\0\0";

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular {
        /// Whether it may be executed.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl FileType {
    /// The type as a directory entry states it.
    pub fn dirent_type(self) -> u8 {
        match self {
            Self::Regular { .. } => 1,
            Self::Directory => 2,
            Self::Symlink => 7,
        }
    }

    fn mode(self) -> u16 {
        match self {
            Self::Regular { executable: false } => 0o100_444,
            Self::Regular { executable: true } => 0o100_555,
            Self::Directory => 0o040_555,
            Self::Symlink => 0o120_777,
        }
    }
}

/// An inode, as it is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub file_type: FileType,
    /// Bytes of its contents.
    pub size: u64,
    /// Directory entries that lead to it.
    pub nlink: u32,
    /// The first of its whole blocks; of no meaning where it has none.
    pub block: u32,
    /// Whether the end of its contents lies right behind the inode.
    pub inline_tail: bool,
    /// Its number for programs that know 32 bits.
    pub number: u32,
}

/// Bytes of an inode with this size and number of links: large values need the extended form.
pub fn inode_bytes(size: u64, nlink: u32) -> u64 {
    if u32::try_from(size).is_ok() && u16::try_from(nlink).is_ok() { 32 } else { 64 }
}

impl Inode {
    /// The inode's bytes: `struct erofs_inode_compact` or `struct erofs_inode_extended`.
    pub fn encode(&self) -> Vec<u8> {
        let extended = inode_bytes(self.size, self.nlink) == 64;
        let layout: u16 = if self.inline_tail { 2 } else { 0 };
        let mut out = Vec::with_capacity(64);
        put(&mut out, &(layout << 1 | u16::from(extended)).to_le_bytes());
        put(&mut out, &[0; 2]); // no extended attributes
        put(&mut out, &self.file_type.mode().to_le_bytes());
        if extended {
            put(&mut out, &[0; 2]);
            put(&mut out, &self.size.to_le_bytes());
        } else {
            put(&mut out, &(self.nlink as u16).to_le_bytes());
            put(&mut out, &(self.size as u32).to_le_bytes());
            put(&mut out, &[0; 4]);
        }
        put(&mut out, &self.block.to_le_bytes());
        put(&mut out, &self.number.to_le_bytes());
        if extended {
            put(&mut out, &[0; 8]); // owner and group: root
            put(&mut out, &MTIME_SECONDS.to_le_bytes());
            put(&mut out, &[0; 4]);
            put(&mut out, &self.nlink.to_le_bytes());
            put(&mut out, &[0; 16]);
        } else {
            // Owner and group: root. The time of a compact inode is the superblock's.
            put(&mut out, &[0; 8]);
        }
        out
    }
}

/// What the superblock says.
#[derive(Debug, Clone, Copy)]
pub struct Superblock {
    /// Slot of the root directory.
    pub root_slot: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Blocks of the whole image.
    pub blocks: u32,
    /// What tells the image apart.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// All of block 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut sb = Vec::with_capacity(128);
        put(&mut sb, &MAGIC.to_le_bytes());
        put(&mut sb, &[0; 4]); // the checksum, below
        put(&mut sb, &COMPAT_CHECKSUM.to_le_bytes());
        put(&mut sb, &[BLOCK_BYTES.trailing_zeros() as u8, 0]);
        put(&mut sb, &self.root_slot.to_le_bytes());
        put(&mut sb, &self.inodes.to_le_bytes());
        put(&mut sb, &MTIME_SECONDS.to_le_bytes());
        put(&mut sb, &[0; 4]);
        put(&mut sb, &self.blocks.to_le_bytes());
        put(&mut sb, &[0; 8]); // inodes are counted from block 0; no shared attributes
        put(&mut sb, &self.uuid);
        put(&mut sb, VOLUME_NAME);
        // No incompatible features, compression, devices or packed inodes: zeros to the end of the block.
        sb.resize((BLOCK_BYTES - SUPERBLOCK_OFFSET) as usize, 0);
        let checksum = crc32c(&sb);
        sb[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        let mut block = vec![0; SUPERBLOCK_OFFSET as usize];
        block.append(&mut sb);
        block
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

/// CRC-32C as the kernel's `crc32c(~0, …)` computes it: without the inversion at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        // RFC 3720, appendix B.4: 32 bytes of zeros; there with the inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn sizes_above_4_gib_and_many_links_take_the_extended_form() {
        assert_eq!(inode_bytes(u64::from(u32::MAX), 65_535), 32);
        assert_eq!(inode_bytes(u64::from(u32::MAX) + 1, 1), 64);
        assert_eq!(inode_bytes(0, 65_536), 64);
        let inode = Inode {
            file_type: FileType::Regular { executable: true },
            size: 5 << 30,
            nlink: 1,
            block: 7,
            inline_tail: false,
            number: 3,
        };
        let bytes = inode.encode();
        assert_eq!((bytes.len(), bytes[0]), (64, 1));
        assert_eq!(bytes[8..16], (5u64 << 30).to_le_bytes());
        assert_eq!(bytes[32..40], 1u64.to_le_bytes());
        let small = Inode { size: 5, inline_tail: true, ..inode }.encode();
        assert_eq!((small.len(), small[0]), (32, 4));
    }
}
