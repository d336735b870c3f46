//! Whether an archive holds the one file whose hash a content address gives.

use std::io;

use sha2::{Digest, Sha256, Sha512};

use super::{ContentAddress, IngestionMethod};
use crate::hash::HashAlgorithm;

/// The archive of a file up to its contents; the second is that of an executable one.
const HEADS: [&[&[u8]]; 2] = [
    &[b"nix-archive-1", b"(", b"type", b"regular", b"contents"],
    &[b"nix-archive-1", b"(", b"type", b"regular", b"executable", b"", b"contents"],
];

/// Hashes the contents of the file in an archive that is written into it.
pub struct FileCheck {
    hasher: Hasher,
    wanted: Vec<u8>,
    /// What came before the contents.
    head: Vec<u8>,
    /// Bytes of the contents that are still to come; none before their length is known.
    left: Option<u64>,
    /// Whether it is something else than a file.
    other: bool,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl FileCheck {
    /// A check for an address that is the hash of a file's bytes; none for others, and for broken or unknown algorithms.
    pub fn new(address: &ContentAddress) -> Option<Self> {
        let (algorithm, wanted) = match address {
            ContentAddress::Text(hash) => (HashAlgorithm::Sha256, hash.as_bytes().to_vec()),
            ContentAddress::Fixed { method: IngestionMethod::Flat, hash } => {
                (hash.algorithm(), hash.digest().to_vec())
            }
            ContentAddress::Fixed { .. } => return None,
        };
        let hasher = match algorithm {
            HashAlgorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            HashAlgorithm::Sha512 => Hasher::Sha512(Sha512::new()),
            HashAlgorithm::Md5 | HashAlgorithm::Sha1 => return None,
        };
        Some(Self { hasher, wanted, head: Vec::new(), left: None, other: false })
    }

    /// Whether what was written was a file with that hash. Whether the archive is one to its end is for others to check.
    pub fn is_right(self) -> bool {
        let found = match self.hasher {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha512(hasher) => hasher.finalize().to_vec(),
        };
        !self.other && self.left == Some(0) && found == self.wanted
    }

    /// Looks for the end of what stands before the contents; gives how many of `bytes` belong to that.
    fn read_head(&mut self, bytes: &[u8]) -> usize {
        let before = self.head.len();
        let heads = HEADS.map(strings);
        let longest = heads.iter().map(Vec::len).max().unwrap_or_default() + size_of::<u64>();
        self.head.extend_from_slice(&bytes[..bytes.len().min(longest - before)]);
        for head in &heads {
            let len = self.head.strip_prefix(&head[..]).and_then(|rest| rest.first_chunk());
            if let Some(len) = len {
                self.left = Some(u64::from_le_bytes(*len));
                return (head.len() + size_of::<u64>()).saturating_sub(before);
            }
        }
        self.other = self.head.len() == longest;
        bytes.len()
    }
}

/// Strings as an archive writes them.
fn strings(strings: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend_from_slice(&(string.len() as u64).to_le_bytes());
        bytes.extend_from_slice(string);
        bytes.resize(bytes.len().next_multiple_of(size_of::<u64>()), 0);
    }
    bytes
}

impl io::Write for FileCheck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let from = if self.left.is_none() && !self.other { self.read_head(bytes) } else { 0 };
        if let Some(left) = &mut self.left {
            let contents = &bytes[from..];
            let len = contents.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= len as u64;
            match &mut self.hasher {
                Hasher::Sha256(hasher) => hasher.update(&contents[..len]),
                Hasher::Sha512(hasher) => hasher.update(&contents[..len]),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Sha256Hash;
    use crate::hash::AnyHash;

    fn archive(executable: bool, contents: &[u8]) -> Vec<u8> {
        let mut bytes = strings(HEADS[usize::from(executable)]);
        bytes.extend(strings(&[contents, b")"]));
        bytes
    }

    fn is_right(address: &ContentAddress, archive: &[u8], step: usize) -> bool {
        let mut check = FileCheck::new(address).unwrap();
        archive.chunks(step).for_each(|part| check.write_all(part).unwrap());
        check.is_right()
    }

    #[test]
    fn only_the_file_with_that_hash_is_right_however_it_comes() {
        let contents = b"what is in it";
        let hash = Sha256Hash::of(contents);
        let long = AnyHash::new(HashAlgorithm::Sha512, Sha512::digest(contents).to_vec()).unwrap();
        let flat = |hash| ContentAddress::Fixed { method: IngestionMethod::Flat, hash };
        for address in [ContentAddress::Text(hash), flat(hash.into()), flat(long)] {
            for step in [1, 7, 8, 104, 1000] {
                assert!(is_right(&address, &archive(false, contents), step), "{step}");
                assert!(is_right(&address, &archive(true, contents), step), "{step}");
                assert!(!is_right(&address, &archive(false, b"what was in it"), step));
                assert!(!is_right(&address, &archive(false, contents)[..100], step));
                assert!(!is_right(&address, &strings(&[b"nix-archive-1", b"(", &[0; 300]]), step));
            }
        }
        let tree = ContentAddress::Fixed { method: IngestionMethod::Nar, hash: hash.into() };
        assert!(FileCheck::new(&tree).is_none());
    }
}
