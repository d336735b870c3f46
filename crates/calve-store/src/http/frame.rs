//! Chunks and recipes on the wire: `id (32 bytes), plain length, stored length (both u32, little-endian), zstd frame`.
//!
//! An id of zeros with a plain length of zero is no chunk: behind it stands a [`Problem`], and nothing follows.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Problem;
use crate::chunk::{ChunkId, StoredChunk};

/// Bytes before each frame's content.
pub const HEAD_BYTES: usize = 40;
/// Parts of up to so many bytes are copied rather than sent by themselves: a recipe, a small chunk.
const JOINED_PART_BYTES: usize = 4 << 10;
/// Bytes of such parts that become one.
const JOINED_BYTES: usize = 64 << 10;
/// Most bytes of a problem in a frame.
const PROBLEM_MAX_BYTES: u32 = 16 * 1024;

/// Why bytes are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame says that it is larger than frames may be.
    #[error("{id} has {plain} bytes, {stored} as sent, and at most {max} are taken")]
    TooLarge {
        /// Which.
        id: ChunkId,
        /// Its plain length.
        plain: u32,
        /// Its stored length.
        stored: u32,
        /// The limit of the stored length.
        max: u32,
    },
    /// A frame without content.
    #[error("{0} is empty")]
    Empty(ChunkId),
    /// The bytes end within a frame.
    #[error("it ends in the middle of a chunk, after {0} of its bytes")]
    Truncated(usize),
    /// The other side reports a problem.
    #[error("{}", .0.message)]
    Problem(Problem),
}

/// What stands before a frame's content.
pub fn head(id: &ChunkId, plain_len: u32, stored_len: u32) -> Bytes {
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    head.put_slice(&id.0);
    head.put_u32_le(plain_len);
    head.put_u32_le(stored_len);
    head.freeze()
}

/// A chunk as a frame, in two parts so that its bytes are not copied.
pub fn encode(chunk: StoredChunk) -> [Bytes; 2] {
    let stored_len = u32::try_from(chunk.zstd.len()).expect("a stored chunk has a length below 4 GiB");
    [head(&chunk.id, chunk.len, stored_len), chunk.zstd]
}

/// A problem as the last frame.
pub fn encode_problem(problem: &Problem) -> [Bytes; 2] {
    let mut json = problem.to_json();
    if json.len() > PROBLEM_MAX_BYTES as usize {
        json = Problem::new(problem.kind, "its description is too long to be sent").to_json();
    }
    [head(&ChunkId([0; 32]), 0, json.len() as u32), json.into()]
}

/// The same bytes in fewer parts: each that is sent by itself wakes whoever waits for it, at both ends.
pub fn joined(parts: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let (mut all, mut small) = (Vec::new(), BytesMut::new());
    for part in parts {
        let is_small = part.len() <= JOINED_PART_BYTES;
        if !small.is_empty() && (!is_small || small.len() + part.len() > JOINED_BYTES) {
            all.push(small.split().freeze());
        }
        if is_small {
            small.extend_from_slice(&part);
        } else {
            all.push(part);
        }
    }
    if !small.is_empty() {
        all.push(small.freeze());
    }
    all
}

/// Takes bytes as they come and gives frames.
#[derive(Debug)]
pub struct Decoder {
    waiting: BytesMut,
    plain_max: u32,
    stored_max: u32,
}

impl Decoder {
    /// A decoder of frames with at most so many bytes of content, unpacked and as sent.
    pub fn new(plain_max: u32, stored_max: u32) -> Self {
        Self { waiting: BytesMut::new(), plain_max, stored_max }
    }

    /// Takes further bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next frame; none where more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<StoredChunk>, FrameError> {
        if self.waiting.len() < HEAD_BYTES {
            return Ok(None);
        }
        let mut head = &self.waiting[..HEAD_BYTES];
        let mut id = [0; 32];
        head.copy_to_slice(&mut id);
        let (id, plain, stored) = (ChunkId(id), head.get_u32_le(), head.get_u32_le());
        let is_problem = id.0 == [0; 32] && plain == 0;
        let stored_max = if is_problem { PROBLEM_MAX_BYTES } else { self.stored_max };
        if stored > stored_max || plain > self.plain_max {
            return Err(FrameError::TooLarge { id, plain, stored, max: stored_max });
        }
        if stored == 0 || (plain == 0 && !is_problem) {
            return Err(FrameError::Empty(id));
        }
        let whole = HEAD_BYTES + stored as usize;
        if self.waiting.len() < whole {
            self.waiting.reserve(whole - self.waiting.len());
            return Ok(None);
        }
        let mut frame = self.waiting.split_to(whole).freeze();
        let zstd = frame.split_off(HEAD_BYTES);
        if is_problem {
            let problem = Problem::from_json(&zstd)
                .unwrap_or_else(|| Problem::new(super::ProblemKind::Failed, "it did not say why"));
            return Err(FrameError::Problem(problem));
        }
        Ok(Some(StoredChunk { id, len: plain, zstd }))
    }

    /// That no more bytes come.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.waiting.is_empty() { Ok(()) } else { Err(FrameError::Truncated(self.waiting.len())) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::ProblemKind;

    fn chunk(bytes: &'static [u8]) -> StoredChunk {
        StoredChunk { id: ChunkId::of(bytes), len: 1, zstd: Bytes::from_static(bytes) }
    }

    fn wire(chunks: &[StoredChunk]) -> Vec<u8> {
        chunks.iter().flat_map(|chunk| encode(chunk.clone())).flatten().collect()
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(cut in 1_usize..200) {
            let chunks = [chunk(b"a"), chunk(b"bcdefgh"), chunk(&[7; 300])];
            let mut decoder = Decoder::new(1, 300);
            let mut found = Vec::new();
            for part in wire(&chunks).chunks(cut) {
                decoder.push(part);
                while let Some(chunk) = decoder.next_frame().unwrap() {
                    found.push(chunk);
                }
            }
            prop_assert_eq!(decoder.finish(), Ok(()));
            prop_assert_eq!(found.as_slice(), &chunks);
        }
    }

    #[test]
    fn small_parts_are_joined_and_large_ones_are_not_copied() {
        let part = |byte, len| Bytes::from(vec![byte; len]);
        let large = part(3, JOINED_PART_BYTES + 1);
        let parts = [part(1, 40), part(2, 100), large.clone(), part(4, 40), large.clone()];
        let sent = joined(parts.iter().cloned());
        assert_eq!(sent.concat(), parts.concat());
        assert_eq!(sent.iter().map(Bytes::len).collect::<Vec<_>>(), [140, large.len(), 40, large.len()]);
        assert_eq!(sent[1].as_ptr(), large.as_ptr());
        let sent = joined(std::iter::repeat_n(part(5, 4000), 20));
        assert_eq!(sent.iter().map(Bytes::len).collect::<Vec<_>>(), [64_000, 16_000]);
    }

    #[test]
    fn frames_that_lie_are_refused_before_their_content_is_waited_for() {
        let first = |bytes: &[u8], max| {
            let mut decoder = Decoder::new(10, max);
            decoder.push(bytes);
            decoder.next_frame()
        };
        let id = ChunkId([1; 32]);
        assert!(matches!(first(&head(&id, 1, 301), 300), Err(FrameError::TooLarge { .. })));
        assert!(matches!(first(&head(&id, 11, 1), 300), Err(FrameError::TooLarge { .. })));
        assert!(matches!(first(&head(&id, 0, 1), 300), Err(FrameError::Empty(_))));
        assert!(matches!(first(&head(&id, 1, 0), 300), Err(FrameError::Empty(_))));
        let mut decoder = Decoder::new(10, 300);
        decoder.push(&wire(&[chunk(b"abc")])[..42]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated(42)));
    }

    #[test]
    fn a_problem_ends_the_frames() {
        let problem = Problem::new(ProblemKind::Missing, "gone");
        let mut decoder = Decoder::new(10, 10);
        decoder.push(&encode_problem(&problem).concat());
        assert_eq!(decoder.next_frame(), Err(FrameError::Problem(problem)));
    }
}
