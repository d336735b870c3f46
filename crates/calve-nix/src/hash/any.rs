//! A hash by any algorithm that Nix knows, as content addresses name them.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Sha256Hash;
use crate::base32;

/// A text that is no hash, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {wanted}")]
pub struct HashError {
    text: String,
    wanted: &'static str,
}

impl HashError {
    pub(super) fn not_sha256(text: &str) -> Self {
        let wanted = "sha256: followed by 64 hexadecimal digits or 52 characters of Nix base32, nor sha256- and base64";
        Self { text: text.to_owned(), wanted }
    }
}

/// A hash algorithm of Nix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// 16 bytes; broken, read because old fixed outputs have it.
    Md5,
    /// 20 bytes; broken, read because old fixed outputs have it.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// Its name as Nix writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of its digests.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512].into_iter().find(|known| known.name() == name)
    }
}

/// A digest with its algorithm. Displayed as `<algorithm>:<base32>`, as in a content address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnyHash {
    algorithm: HashAlgorithm,
    digest: Vec<u8>,
}

impl AnyHash {
    /// A digest, which must have the length of the algorithm's.
    pub fn new(algorithm: HashAlgorithm, digest: Vec<u8>) -> Option<Self> {
        (digest.len() == algorithm.digest_bytes()).then_some(Self { algorithm, digest })
    }

    /// What it was made by.
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The digest's bytes.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// `<algorithm>:` and lower-case hexadecimal digits, as in what a store path is computed from.
    pub fn to_hex(&self) -> String {
        let digits = self.digest.iter().map(|byte| format!("{byte:02x}"));
        format!("{}:{}", self.algorithm.name(), digits.collect::<String>())
    }
}

impl From<Sha256Hash> for AnyHash {
    fn from(hash: Sha256Hash) -> Self {
        Self { algorithm: HashAlgorithm::Sha256, digest: hash.as_bytes().to_vec() }
    }
}

impl fmt::Display for AnyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), base32::encode(&self.digest))
    }
}

impl FromStr for AnyHash {
    type Err = HashError;

    /// Reads `<algorithm>:` and hexadecimal, base32 or base64, or `<algorithm>-` and base64 (SRI).
    fn from_str(text: &str) -> Result<Self, HashError> {
        let wanted = "hash by md5, sha1, sha256 or sha512 in hexadecimal, Nix base32 or base64";
        parse(text).ok_or_else(|| HashError { text: text.to_owned(), wanted })
    }
}

fn parse(text: &str) -> Option<AnyHash> {
    let separator = text.find([':', '-'])?;
    let (algorithm, digits) = (HashAlgorithm::from_name(&text[..separator])?, &text[separator + 1..]);
    let bytes = algorithm.digest_bytes();
    let sri = text.as_bytes()[separator] == b'-';
    let digest = match digits.len() {
        len if !sri && len == bytes * 2 => decode_hex(digits)?,
        len if !sri && len == base32::encoded_len(bytes) => base32::decode(digits).ok()?,
        len if len == bytes.div_ceil(3) * 4 => BASE64.decode(digits).ok()?,
        _ => return None,
    };
    AnyHash::new(algorithm, digest)
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| Some((value(pair[0])? << 4 | value(*pair.get(1)?)?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_is_read_in_every_spelling() {
        // `printf '' | nix hash file --type … [--base16|--base32|--sri] /dev/stdin` of Nix 2.8.
        for (hex, base32, sri) in [
            (
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                "md5:3y8bwfr609h3lh9ch0izcqq7fl",
                "md5-1B2M2Y8AsgTpgAmY7PhCfg==",
            ),
            (
                "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
                "sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs",
                "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
            ),
        ] {
            let hash: AnyHash = hex.parse().unwrap();
            assert_eq!((hash.to_hex().as_str(), hash.to_string().as_str()), (hex, base32));
            assert_eq!(base32.parse(), Ok(hash.clone()));
            assert_eq!(sri.parse(), Ok(hash));
        }
        let sha512 = AnyHash::new(HashAlgorithm::Sha512, vec![7; 64]).unwrap();
        assert_eq!(sha512.to_string().parse(), Ok(sha512.clone()));
        assert_eq!(sha512.to_hex().parse(), Ok(sha512));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for bad in
            ["", ":", "sha256", "blake3:00", "md5:", "md5-d41d8cd98f00b204e9800998ecf8427e", "md5:1B2M2Y8A=="]
        {
            assert!(bad.parse::<AnyHash>().is_err(), "{bad:?}");
        }
    }
}
