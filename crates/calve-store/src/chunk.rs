//! Chunks: the pieces in which archives are stored and sent.
//!
//! An archive is cut where its content says so (FastCDC, Xia et al., USENIX ATC 2016), after the hash parts of its
//! references were replaced (see [`crate::normal`]), so that an edit moves no cut but those beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Smallest chunk in bytes, but for the last of an archive: an id of 32 bytes must not weigh against it.
pub const CHUNK_MIN: u32 = 16 * 1024;
/// Size in bytes that chunks have on average: smaller ones find more that is equal, larger ones compress better.
pub const CHUNK_AVERAGE: u32 = 64 * 1024;
/// Largest chunk in bytes; whoever reads a chunk may allocate this much.
pub const CHUNK_MAX: u32 = 256 * 1024;
/// Most bytes of a chunk as it is stored: zstd's bound for [`CHUNK_MAX`] of incompressible bytes, rounded up.
pub const CHUNK_STORED_MAX: u32 = CHUNK_MAX + 4 * 1024;

/// The BLAKE3 hash of a chunk's plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A chunk as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// Its id, which its plain bytes must have.
    pub id: ChunkId,
    /// Length of its plain bytes.
    pub len: u32,
    /// One zstd frame.
    pub zstd: bytes::Bytes,
}
