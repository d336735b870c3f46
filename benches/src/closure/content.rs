//! Made-up file contents that compress as real ones do, the same for the same seed.

use std::io::{self, Write};

/// Different things that a program or a text is put together from.
const WORDS: usize = 4096;
/// Longest of them in bytes.
const WORD_BYTES_MAX: usize = 11;

/// A xorshift generator: quick, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What files of one kind are made of.
pub struct Content {
    words: Vec<Vec<u8>>,
    /// Of 64 words so many are new bytes that nothing compresses.
    noise: u64,
    head: &'static [u8],
}

impl Content {
    /// As source and documentation: letters, spaces, lines.
    pub fn text() -> Self {
        let mut random = Random::new(11);
        let word = |n: usize, random: &mut Random| {
            let mut word: Vec<u8> =
                (0..2 + random.below(8)).map(|_| b"etaoinshrdlucmfw"[random.below(16) as usize]).collect();
            word.push(if n.is_multiple_of(9) { b'\n' } else { b' ' });
            word
        };
        Self { words: (0..WORDS).map(|n| word(n, &mut random)).collect(), noise: 0, head: b"" }
    }

    /// As programs and libraries: an ELF header, codes that come back, addresses that do not, runs of zeros.
    pub fn elf() -> Self {
        let mut random = Random::new(12);
        let word = |n: usize, random: &mut Random| match n % 16 {
            0 => vec![0; WORD_BYTES_MAX],
            _ => (0..3 + random.below(WORD_BYTES_MAX as u64 - 3))
                .map(|_| (random.next() >> 24) as u8)
                .collect(),
        };
        let words = (0..WORDS).map(|n| word(n, &mut random)).collect();
        Self { words, noise: 6, head: b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0" }
    }

    /// Writes a file of `size` bytes.
    pub fn write(&self, random: &mut Random, size: usize, out: &mut impl Write) -> io::Result<()> {
        let mut left = size;
        let mut put = |bytes: &[u8]| {
            let taken = bytes.len().min(left);
            left -= taken;
            out.write_all(&bytes[..taken]).map(|()| left > 0)
        };
        let mut more = put(self.head)?;
        while more {
            let drawn = random.next();
            if drawn % 64 < self.noise {
                more = put(&drawn.to_le_bytes()[2..6])?;
                continue;
            }
            // A few words stand for much of every text: the smaller of two draws.
            let at = ((drawn >> 8) % WORDS as u64).min((drawn >> 24) % WORDS as u64);
            more = put(&self.words[at as usize])?;
        }
        Ok(())
    }
}
