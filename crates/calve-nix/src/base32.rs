//! Nix's base32: 5 bits a character, the last character first, an alphabet without `e`, `o`, `t`, `u`
//! (`src/libutil/hash.cc` of Nix, `printHash32`).

use crate::store_path::BASE32_ALPHABET;

/// Why a text is no Nix base32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    /// A character outside the alphabet.
    #[error("{0:?} is no character of Nix base32")]
    BadCharacter(char),
    /// No number of whole bytes has an encoding of this length.
    #[error("{0} characters of Nix base32 hold no whole number of bytes")]
    BadLength(usize),
    /// Bits beyond the last byte are set: no encoder writes this.
    #[error("the first character sets bits beyond the last byte")]
    SpareBits,
}

/// What each character stands for; none of those outside the alphabet is looked up.
const VALUES: [u8; 128] = {
    let mut values = [0; 128];
    let mut value = 0;
    while value < BASE32_ALPHABET.len() {
        values[BASE32_ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Whether a byte is a character of Nix base32. Comparisons, not a table: they can be done for many bytes at once.
#[inline(always)]
pub fn in_alphabet(byte: u8) -> bool {
    let digit = byte.wrapping_sub(b'0') < 10;
    let letter = byte.wrapping_sub(b'a') < 26;
    digit | (letter & (byte != b'e') & (byte != b'o') & (byte != b't') & (byte != b'u'))
}

/// Characters that `bytes` bytes take.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Encodes `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    let quintet = |n: usize| {
        let (byte, shift) = (n * 5 / 8, n * 5 % 8);
        let next = bytes.get(byte + 1).copied().unwrap_or(0);
        let window = u16::from(bytes[byte]) | u16::from(next) << 8;
        char::from(BASE32_ALPHABET[usize::from(window >> shift & 0x1f)])
    };
    (0..encoded_len(bytes.len())).rev().map(quintet).collect()
}

/// Decodes what [`encode`] gives; every other text is refused.
pub fn decode(text: &str) -> Result<Vec<u8>, Base32Error> {
    let len = text.len() * 5 / 8;
    if let Some(bad) = text.chars().find(|c| !c.is_ascii() || !in_alphabet(*c as u8)) {
        return Err(Base32Error::BadCharacter(bad));
    }
    if encoded_len(len) != text.len() {
        return Err(Base32Error::BadLength(text.len()));
    }
    let mut bytes = vec![0u8; len];
    for (n, character) in text.bytes().rev().enumerate() {
        let value = u16::from(VALUES[usize::from(character)]);
        let (byte, shift) = (n * 5 / 8, n * 5 % 8);
        let [low, high] = (value << shift).to_le_bytes();
        bytes[byte] |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Base32Error::SpareBits),
            None => {}
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_store_paths() {
        for byte in 0..=255 {
            assert_eq!(in_alphabet(byte), BASE32_ALPHABET.contains(&byte), "{byte}");
        }
    }

    #[test]
    fn encodes_as_nix_does() {
        // `printf hello | nix-hash --type sha256 --base32 --flat /dev/stdin`
        let sha256 = crate::Sha256Hash::of(b"hello");
        assert_eq!(encode(sha256.as_bytes()), "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic");
        assert_eq!(encode(b""), "");
    }

    #[test]
    fn refuses_what_no_encoder_writes() {
        assert_eq!(decode("0e"), Err(Base32Error::BadCharacter('e')));
        assert_eq!(decode("0é"), Err(Base32Error::BadCharacter('é')));
        assert_eq!(decode("0"), Err(Base32Error::BadLength(1)));
        assert_eq!(decode("000"), Err(Base32Error::BadLength(3)));
        assert_eq!(decode("z0"), Err(Base32Error::SpareBits));
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            let text = encode(&bytes);
            prop_assert_eq!(text.len(), encoded_len(bytes.len()));
            prop_assert_eq!(decode(&text), Ok(bytes));
        }

        #[test]
        fn what_decodes_encodes_to_itself(text in "[0-9a-z]{0,60}") {
            if let Ok(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
