//! What happened: as a number that two runs share only if everything happened alike, and as lines where somebody reads them.

use std::hash::{Hash, Hasher};

use calve_core::MachineId;

use crate::host::Ms;

/// FNV-1a's first value and prime (Fowler, Noll and Vo), of 64 bits.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// Everything that happened.
pub struct Digest {
    hash: u64,
    lines: Vec<String>,
    keeps_lines: bool,
}

impl Digest {
    pub fn new(keeps_lines: bool) -> Self {
        Self { hash: BASIS, lines: Vec::new(), keeps_lines }
    }

    /// Something happened to a machine; in fixed words, which cost nothing where nobody reads them.
    pub fn say(&mut self, at: Ms, what: &str, id: MachineId) {
        self.write_u64(at);
        self.write(what.as_bytes());
        id.hash(self);
        self.note(at, || format!("{what} {id}"));
    }

    /// A line that counts as it is written.
    pub fn line(&mut self, at: Ms, line: &str) {
        self.write_u64(at);
        self.write(line.as_bytes());
        self.note(at, || line.to_owned());
    }

    /// A line for readers alone.
    pub fn note(&mut self, at: Ms, line: impl FnOnce() -> String) {
        if self.keeps_lines {
            self.lines.push(format!("{at:>9} {}", line()));
        }
    }

    /// The number and the lines.
    pub fn take(&mut self) -> (u64, Vec<String>) {
        (self.hash, std::mem::take(&mut self.lines))
    }
}

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(PRIME).rotate_left(29);
    }
}
