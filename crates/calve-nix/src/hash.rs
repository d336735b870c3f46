//! Hashes as Nix writes them: `sha256:` and hexadecimal digits (its database) or base32 (narinfo), or SRI
//! (`sha256-` and base64); `src/libutil/hash.cc` of Nix.

mod any;

use std::fmt;
use std::io;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::base32;

pub use any::{AnyHash, HashAlgorithm, HashError};

/// A SHA-256 digest, such as that of a NAR or a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hash([u8; 32]);

impl Sha256Hash {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// 52 characters of Nix base32.
    pub fn to_base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// `sha256:` and base32, as in a narinfo and in what is signed.
    pub fn to_nix(&self) -> String {
        format!("sha256:{}", self.to_base32())
    }

    /// The digest folded to 20 bytes by XOR, as in the hash part of a store path (`compressHash` of Nix).
    pub fn compressed(&self) -> [u8; 20] {
        let mut folded = [0; 20];
        for (i, byte) in self.0.iter().enumerate() {
            folded[i % 20] ^= byte;
        }
        folded
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Sha256Hash {
    type Err = HashError;

    /// Every spelling that Nix reads: `sha256:` and hexadecimal, base32 or base64, or `sha256-` and base64.
    fn from_str(text: &str) -> Result<Self, HashError> {
        let hash: AnyHash = text.parse()?;
        let digest = hash.digest().try_into().ok().filter(|_| hash.algorithm() == HashAlgorithm::Sha256);
        digest.map(Self).ok_or_else(|| HashError::not_sha256(text))
    }
}

impl From<[u8; 32]> for Sha256Hash {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

/// Hashes and counts what is written into it; a clone goes on from what was written so far.
#[derive(Default, Clone)]
pub struct HashWriter {
    hasher: Sha256,
    bytes: u64,
}

impl HashWriter {
    /// Takes further bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest and the number of bytes written.
    pub fn finish(self) -> (Sha256Hash, u64) {
        (Sha256Hash(self.hasher.finalize().into()), self.bytes)
    }
}

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes on what is read from `inner`, hashed and counted. Below a buffer, so that large pieces are hashed at once, its digest
/// is that of what the buffer took: read to the end first.
pub struct HashReader<R> {
    inner: R,
    hash: HashWriter,
}

impl<R: io::Read> HashReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: HashWriter::default() }
    }

    /// The digest and the number of bytes read.
    pub fn finish(self) -> (Sha256Hash, u64) {
        self.hash.finish()
    }
}

impl<R: io::Read> io::Read for HashReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        io::Write::write(&mut self.hash, &bytes[..read])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_of_nix_is_read() {
        let hash = Sha256Hash::of(b"");
        assert_eq!(hash.to_hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_nix().parse(), Ok(hash));
        // `nix hash to-sri --type sha256 e3b0…`
        assert_eq!("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".parse(), Ok(hash));
        assert_eq!("sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".parse(), Ok(hash));
        for bad in ["", "sha256:", &hash.to_hex(), "sha1:00", &format!("sha256:{}é", "0".repeat(62))] {
            assert!(bad.parse::<Sha256Hash>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_hash_like_the_whole(pieces: Vec<Vec<u8>>) {
            let mut writer = HashWriter::default();
            for piece in &pieces {
                writer.write_all(piece).unwrap();
            }
            let whole = pieces.concat();
            prop_assert_eq!(writer.finish(), (Sha256Hash::of(&whole), whole.len() as u64));
            let (mut reader, mut read) = (HashReader::new(&*whole), Vec::new());
            reader.read_to_end(&mut read).unwrap();
            prop_assert_eq!(reader.finish(), (Sha256Hash::of(&whole), whole.len() as u64));
            prop_assert_eq!(read, whole);
        }
    }
}
