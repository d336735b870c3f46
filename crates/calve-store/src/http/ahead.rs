//! An archive told of while it is cut: `length (u32, little-endian), manifests`, of which there is one without a recipe, and
//! then parts: `number of chunks, number of positions (both u32, little-endian), chunks, positions`; a chunk is `id (32 bytes),
//! length (u32)`, a position `skip (u64), reference (u32)`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::message::Message;
use crate::PathInfo;
use crate::chunk::{CHUNK_MAX, ChunkId};
use crate::recipe::{Piece, Position};
use crate::remote::{ArchivePart, Manifest, PART_PIECES_MAX, PART_POSITIONS_MAX};

/// Most bytes of what is said of the path as it travels: one with ten thousand references has a third of it.
pub const PATH_BYTES_MAX: usize = 1 << 20;
const PIECE_BYTES: usize = 32 + 4;
const POSITION_BYTES: usize = 8 + 4;

/// Why bytes are no such archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AheadError(pub String);

/// The beginning: what is known of the path.
pub fn encode_path(info: &PathInfo) -> Bytes {
    let manifest = Manifest { info: info.clone(), recipe: ChunkId([0; 32]), lazy: None };
    let manifests = vec![manifest].encode();
    let mut bytes = BytesMut::with_capacity(4 + manifests.len());
    bytes.put_u32_le(u32::try_from(manifests.len()).expect("a manifest has fewer than 4 GiB"));
    bytes.put_slice(&manifests);
    bytes.freeze()
}

/// A part of the archive.
pub fn encode_part(part: &ArchivePart) -> Bytes {
    let length = 8 + part.pieces.len() * PIECE_BYTES + part.positions.len() * POSITION_BYTES;
    let mut bytes = BytesMut::with_capacity(length);
    bytes.put_u32_le(part.pieces.len() as u32);
    bytes.put_u32_le(part.positions.len() as u32);
    for piece in &part.pieces {
        bytes.put_slice(&piece.id.0);
        bytes.put_u32_le(piece.len);
    }
    for position in &part.positions {
        bytes.put_u64_le(position.skip);
        bytes.put_u32_le(position.reference);
    }
    bytes.freeze()
}

/// Takes bytes as they come, and gives the path and then the parts.
#[derive(Debug, Default)]
pub struct AheadDecoder {
    waiting: BytesMut,
}

impl AheadDecoder {
    /// Takes further bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// What is known of the path, which comes first and once; none where more bytes are needed.
    pub fn path(&mut self) -> Result<Option<PathInfo>, AheadError> {
        let Some(length) = self.waiting.first_chunk().map(|length| u32::from_le_bytes(*length) as usize)
        else {
            return Ok(None);
        };
        if length > PATH_BYTES_MAX {
            return Err(AheadError(format!("its path takes {length} bytes, more than {PATH_BYTES_MAX}")));
        }
        if self.waiting.len() < 4 + length {
            return Ok(None);
        }
        let mut bytes = self.waiting.split_to(4 + length);
        bytes.advance(4);
        let manifests = Vec::<Manifest>::decode(&bytes).map_err(|error| AheadError(error.to_string()))?;
        let [manifest] = <[Manifest; 1]>::try_from(manifests)
            .map_err(|manifests| AheadError(format!("it names {} paths instead of one", manifests.len())))?;
        Ok(Some(manifest.info))
    }

    /// The next part; none where more bytes are needed.
    pub fn part(&mut self) -> Result<Option<ArchivePart>, AheadError> {
        if self.waiting.len() < 8 {
            return Ok(None);
        }
        let mut head = &self.waiting[..8];
        let (pieces, positions) = (head.get_u32_le() as usize, head.get_u32_le() as usize);
        if pieces > PART_PIECES_MAX || positions > PART_POSITIONS_MAX {
            let most = format!("at most {PART_PIECES_MAX} and {PART_POSITIONS_MAX} are taken");
            return Err(AheadError(format!(
                "a part has {pieces} chunks and {positions} positions, and {most}"
            )));
        }
        let whole = 8 + pieces * PIECE_BYTES + positions * POSITION_BYTES;
        if self.waiting.len() < whole {
            return Ok(None);
        }
        let mut bytes = self.waiting.split_to(whole);
        bytes.advance(8);
        let mut part = ArchivePart::default();
        for _ in 0..pieces {
            let mut id = [0; 32];
            bytes.copy_to_slice(&mut id);
            let len = bytes.get_u32_le();
            if len == 0 || len > CHUNK_MAX {
                return Err(AheadError(format!("a chunk of {len} bytes")));
            }
            part.pieces.push(Piece { id: ChunkId(id), len });
        }
        for _ in 0..positions {
            part.positions.push(Position { skip: bytes.get_u64_le(), reference: bytes.get_u32_le() });
        }
        Ok(Some(part))
    }

    /// That no more bytes come.
    pub fn finish(&self) -> Result<(), AheadError> {
        match self.waiting.len() {
            0 => Ok(()),
            left => Err(AheadError(format!("it ends in the middle of a part, after {left} of its bytes"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use calve_nix::{Sha256Hash, StorePath};

    use super::*;

    fn info() -> PathInfo {
        let path = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a").unwrap();
        let references = vec![path.clone()];
        let nar_hash = Sha256Hash::of(b"");
        PathInfo { path, nar_hash, nar_size: 7, references, deriver: None, ca: None, signatures: Vec::new() }
    }

    #[test]
    fn an_archive_comes_out_as_it_went_in_however_it_is_cut() {
        let pieces =
            vec![Piece { id: ChunkId([7; 32]), len: 5 }, Piece { id: ChunkId([8; 32]), len: CHUNK_MAX }];
        let parts = [
            ArchivePart { pieces, positions: vec![Position { skip: u64::MAX, reference: 3 }] },
            ArchivePart::default(),
        ];
        let sent = [encode_path(&info()), encode_part(&parts[0]), encode_part(&parts[1])].concat();
        for size in [1, 7, 64, sent.len()] {
            let (mut decoder, mut path, mut found) = (AheadDecoder::default(), None, Vec::new());
            for bytes in sent.chunks(size) {
                decoder.push(bytes);
                if path.is_none() {
                    path = decoder.path().unwrap();
                }
                while path.is_some()
                    && let Some(part) = decoder.part().unwrap()
                {
                    found.push(part);
                }
            }
            assert_eq!((path, &found[..], decoder.finish()), (Some(info()), &parts[..], Ok(())));
        }
    }

    #[test]
    fn what_lies_is_refused_before_it_is_waited_for() {
        let decoder = |bytes: &[u8]| AheadDecoder { waiting: bytes.into() };
        let said = |result: Result<_, AheadError>| result.map(|_: Option<ArchivePart>| ()).unwrap_err().0;
        let head = |pieces: u32, positions: u32| [pieces.to_le_bytes(), positions.to_le_bytes()].concat();
        assert!(said(decoder(&head(1025, 0)).part()).contains("1025 chunks"));
        assert!(said(decoder(&head(0, u32::MAX)).part()).contains("4294967295 positions"));
        for len in [0, CHUNK_MAX + 1] {
            let piece = [&head(1, 0)[..], &[1; 32], &len.to_le_bytes()].concat();
            assert!(said(decoder(&piece).part()).contains(&format!("a chunk of {len} bytes")));
        }
        let path = |bytes: &[u8]| decoder(bytes).path().unwrap_err().0;
        assert!(path(&u32::MAX.to_le_bytes()).contains("its path takes 4294967295 bytes"));
        let none = Vec::<Manifest>::new().encode();
        assert!(path(&[&(none.len() as u32).to_le_bytes()[..], &none].concat()).contains("names 0 paths"));
        assert!(path(&[1, 0, 0, 0, 9]).contains("damaged"));
        assert!(decoder(&[1]).finish().is_err());
    }
}
