//! Packs: objects that hold many chunks.
//!
//! ```text
//! MAGIC │ zstd frame │ zstd frame │ … │ contents (postcard) │ length of contents, u32 LE │ BLAKE3 of contents │ MAGIC
//! ```
//! The contents list every frame in order, so that the index can be built anew from the packs alone; they also hold the
//! hash of all frames, so that no byte can change unseen.

use bytes::Bytes;
use object_store::PutPayload;
use serde::{Deserialize, Serialize};

use super::CacheError;
use crate::chunk::{CHUNK_MAX, ChunkId, StoredChunk};
use crate::recipe::RECIPE_BYTES_MAX;

/// Bytes of frames at which a pack is full: large enough that S3 answers at its full rate, small enough to be held in
/// memory by several writers at once.
pub const PACK_BYTES: usize = 8 << 20;
/// Most bytes of contents that anybody reads: those of a pack of the smallest frames, with room to spare.
const CONTENTS_BYTES_MAX: usize = 64 << 20;

/// Most plain bytes of a manifest that anybody reads: one with a million references has 60 MB.
const MANIFEST_BYTES_MAX: u32 = 64 << 20;

/// Bytes of frames that are hashed at once.
const HASH_BLOCK_BYTES: usize = 64 << 10;

const MAGIC: &[u8; 12] = b"calve-pack-1";
/// Bytes behind the contents.
pub(super) const FOOTER_BYTES: usize = 4 + 32 + MAGIC.len();

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A chunk of archives.
    Chunk,
    /// An encoded recipe.
    Recipe,
    /// An encoded manifest.
    Manifest,
}

impl Kind {
    /// Most plain bytes that anybody takes room for.
    fn max_bytes(self) -> u32 {
        match self {
            Self::Chunk => CHUNK_MAX,
            Self::Recipe => RECIPE_BYTES_MAX as u32,
            Self::Manifest => MANIFEST_BYTES_MAX,
        }
    }
}

/// A frame in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub kind: Kind,
    /// BLAKE3 of its plain bytes.
    pub id: ChunkId,
    pub stored: u32,
    pub plain: u32,
}

/// A frame and where it begins in its object.
pub(super) type Placed = (u64, Entry);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    entries: Vec<Entry>,
    frames: [u8; 32],
}

/// A pack that is being filled. Its frames stay where they are: a copy of each pack would be as much memory again, and fresh.
#[derive(Debug)]
pub(super) struct PackWriter {
    frames: Vec<Bytes>,
    entries: Vec<Entry>,
    frame_bytes: usize,
}

impl PackWriter {
    pub fn new() -> Self {
        Self { frames: Vec::new(), entries: Vec::new(), frame_bytes: 0 }
    }

    /// Adds a frame, whose bytes are kept with all that they are a part of.
    pub fn push(&mut self, kind: Kind, chunk: &StoredChunk) {
        self.frame_bytes += chunk.zstd.len();
        self.frames.push(chunk.zstd.clone());
        let stored = chunk.zstd.len() as u32;
        self.entries.push(Entry { kind, id: chunk.id, stored, plain: chunk.len });
    }

    /// Whether it is time to write it.
    pub fn is_full(&self) -> bool {
        self.frame_bytes >= PACK_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The object's bytes, and where each frame begins in it.
    pub fn finish(self) -> (PutPayload, Vec<Placed>) {
        let Self { frames, entries, .. } = self;
        let contents = Contents { entries, frames: hash_of(&frames) };
        let mut end = postcard::to_allocvec(&contents).expect("contents are plain data");
        let (len, hash) = (end.len() as u32, blake3::hash(&end));
        end.extend_from_slice(&len.to_le_bytes());
        end.extend_from_slice(hash.as_bytes());
        end.extend_from_slice(MAGIC);
        let parts = [Bytes::from_static(MAGIC)].into_iter().chain(frames).chain([end.into()]);
        (parts.collect(), placed(contents.entries))
    }
}

/// BLAKE3 of frames one behind the other. It is fast for long inputs that go on at multiples of their lengths, which frames do
/// not: they are copied into such ones.
fn hash_of(frames: &[Bytes]) -> [u8; 32] {
    let (mut hasher, mut block) = (blake3::Hasher::new(), Vec::with_capacity(HASH_BLOCK_BYTES));
    for mut rest in frames.iter().map(|frame| &frame[..]) {
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(HASH_BLOCK_BYTES - block.len()));
            block.extend_from_slice(now);
            rest = later;
            if block.len() == HASH_BLOCK_BYTES {
                hasher.update(&block);
                block.clear();
            }
        }
    }
    hasher.update(&block).finalize().into()
}

fn placed(entries: Vec<Entry>) -> Vec<Placed> {
    let mut at = MAGIC.len() as u64;
    let place = |entry: Entry| {
        let begin = at;
        at += u64::from(entry.stored);
        (begin, entry)
    };
    entries.into_iter().map(place).collect()
}

/// How many bytes before the object's end its contents begin, from its last [`FOOTER_BYTES`].
pub(super) fn contents_len(footer: &[u8], name: &str) -> Result<usize, CacheError> {
    let damaged = |message: &str| CacheError::damaged(format!("pack {name}"), message);
    let len = footer.first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
    match len {
        Some(len) if len <= CONTENTS_BYTES_MAX && footer.ends_with(MAGIC) => Ok(len + FOOTER_BYTES),
        _ => Err(damaged("it does not end as a pack does")),
    }
}

/// What a pack of this size holds, from its end: at least what [`contents_len`] says.
pub(super) fn read_contents(
    end: &[u8],
    object_bytes: u64,
    name: &str,
) -> Result<(Vec<Placed>, [u8; 32]), CacheError> {
    let damaged = |message: String| CacheError::damaged(format!("pack {name}"), message);
    let short = || damaged("it is too short".to_owned());
    let footer = end.len().checked_sub(FOOTER_BYTES).ok_or_else(short)?;
    let len = contents_len(&end[footer..], name)?;
    let encoded = &end[end.len().checked_sub(len).ok_or_else(short)?..footer];
    if blake3::hash(encoded).as_bytes()[..] != end[footer + 4..footer + 36] {
        return Err(damaged("its list of contents is not what was written".to_owned()));
    }
    let contents: Contents =
        postcard::from_bytes(encoded).map_err(|error| damaged(format!("its list of contents: {error}")))?;
    if let Some(entry) = contents.entries.iter().find(|entry| entry.plain > entry.kind.max_bytes()) {
        return Err(damaged(format!("{} in it has {} bytes", entry.id, entry.plain)));
    }
    let frames: u64 = contents.entries.iter().map(|entry| u64::from(entry.stored)).sum();
    if frames + (MAGIC.len() + len) as u64 != object_bytes {
        return Err(damaged(format!("it has {object_bytes} bytes")));
    }
    Ok((placed(contents.entries), contents.frames))
}

/// Whether the whole object holds the frames that were written.
pub(super) fn frames_intact(object: &[u8], frames: [u8; 32]) -> bool {
    let Some(footer) = object.len().checked_sub(FOOTER_BYTES) else { return false };
    let end = contents_len(&object[footer..], "").ok().and_then(|len| object.len().checked_sub(len));
    let body = end.and_then(|end| object.get(MAGIC.len()..end));
    object.starts_with(MAGIC) && body.is_some_and(|body| *blake3::hash(body).as_bytes() == frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_read_back_and_no_byte_can_change() {
        let mut pack = PackWriter::new();
        for text in ["one", "two two", "three three three"] {
            let plain = text.repeat(50);
            let chunk = StoredChunk::compress(ChunkId::of(plain.as_bytes()), plain.as_bytes(), 1).unwrap();
            pack.push(Kind::Chunk, &chunk);
        }
        let (object, entries) = pack.finish();
        let object = Bytes::from(object);
        let (read, frames) = read_contents(&object, object.len() as u64, "p").unwrap();
        assert_eq!(read, entries);
        assert!(frames_intact(&object, frames));
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 1;
            let intact =
                read_contents(&bad, bad.len() as u64, "p").is_ok_and(|(_, f)| frames_intact(&bad, f));
            assert!(!intact, "byte {at}");
        }
        for len in 0..object.len() {
            assert!(read_contents(&object[..len], len as u64, "p").is_err());
        }
    }

    #[test]
    fn frames_are_hashed_over_the_borders_of_blocks() {
        let mut pack = PackWriter::new();
        for n in 0..5_u8 {
            let id = ChunkId([n; 32]);
            let zstd = vec![n; HASH_BLOCK_BYTES / 2 * usize::from(n) + usize::from(n)].into();
            pack.push(Kind::Chunk, &StoredChunk { id, len: 1, zstd });
        }
        let object = Bytes::from(pack.finish().0);
        let (_, frames) = read_contents(&object, object.len() as u64, "p").unwrap();
        assert!(frames_intact(&object, frames));
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let plain = [7; 100];
        let mut chunk = StoredChunk::compress(ChunkId::of(&plain), &plain, 1).unwrap();
        chunk.len = u32::MAX;
        let mut pack = PackWriter::new();
        pack.push(Kind::Chunk, &chunk);
        let object = Bytes::from(pack.finish().0);
        let error = read_contents(&object, object.len() as u64, "p").unwrap_err().to_string();
        assert!(error.contains("4294967295 bytes"), "{error}");
    }
}
