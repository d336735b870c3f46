//! Where hash parts stand in a stream.

use super::Needles;
use crate::store_path::HASH_CHARS;

/// Bytes of the stream so far that a match may begin in without ending there.
const CARRY: usize = HASH_CHARS - 1;

/// Searches a stream that comes in pieces, as if it were one. Every occurrence is told, overlapping ones too, in the order
/// of their offsets.
pub struct Scanner<'a> {
    needles: &'a Needles,
    /// Bytes fed so far.
    fed: u64,
    /// The last bytes fed, at most [`CARRY`].
    carry: [u8; CARRY],
    carried: usize,
}

impl<'a> Scanner<'a> {
    /// A search from the beginning of a stream.
    pub fn new(needles: &'a Needles) -> Self {
        Self { needles, fed: 0, carry: [0; CARRY], carried: 0 }
    }

    /// Searches the next piece and calls `found` with the offset in the stream and the index of the needle, for every match
    /// that ends in this piece.
    pub fn feed(&mut self, piece: &[u8], mut found: impl FnMut(u64, usize)) {
        let head = piece.len().min(CARRY);
        let mut seam = [0; 2 * CARRY];
        seam[..self.carried].copy_from_slice(&self.carry[..self.carried]);
        seam[self.carried..self.carried + head].copy_from_slice(&piece[..head]);
        let seam = &seam[..self.carried + head];
        // Matches that begin in the carried bytes end within the seam.
        each(self.needles, seam, self.carried, |at, index| found(self.fed - self.carried as u64 + at, index));
        each(self.needles, piece, piece.len(), |at, index| found(self.fed + at, index));
        self.fed += piece.len() as u64;
        if piece.len() >= CARRY {
            self.carry.copy_from_slice(&piece[piece.len() - CARRY..]);
            self.carried = CARRY;
        } else {
            let kept = seam.len().min(CARRY);
            self.carry[..kept].copy_from_slice(&seam[seam.len() - kept..]);
            self.carried = kept;
        }
    }
}

/// Every match in `bytes` that begins before `end`.
fn each(needles: &Needles, bytes: &[u8], end: usize, mut found: impl FnMut(u64, usize)) {
    let mut from = 0;
    while let Some((at, index)) = needles.find(bytes, from)
        && at < end
    {
        found(at as u64, index);
        from = at + 1;
    }
}
