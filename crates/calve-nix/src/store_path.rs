//! Store paths: `/nix/store/<32 base32 characters>-<name>`
//! (Nix manual, "Store Path"; `src/libstore/path.cc` of Nix for the name's alphabet).

use std::fmt;

use crate::{Sha256Hash, base32};

/// The logical store directory; every store path that calve runs has it, wherever the bytes lie on the host.
pub const STORE_DIR: &str = "/nix/store";
/// Length of the hash part in base32 characters (160 bits).
pub const HASH_CHARS: usize = 32;
/// Longest name part, as in Nix.
pub const NAME_MAX_CHARS: usize = 211;

/// The characters of Nix's base32, in value order: no `e`, `o`, `t`, `u`.
pub const BASE32_ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// A valid store path, held as its base name (`<hash>-<name>`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(String);

/// Why a text is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// It does not begin with the store directory.
    #[error("{0:?} is not inside {STORE_DIR}")]
    NotInStore(String),
    /// The hash part is too short or has a character outside Nix's base32.
    #[error("{0:?} does not begin with {HASH_CHARS} characters of Nix base32 and a dash")]
    BadHash(String),
    /// The name part is empty, too long, or has a character that Nix does not allow.
    #[error("{0:?} has a name part that Nix does not allow")]
    BadName(String),
}

impl StorePath {
    /// Parses a base name, `<hash>-<name>`.
    pub fn from_base_name(base: &str) -> Result<Self, StorePathError> {
        let bytes = base.as_bytes();
        let hash_ok =
            bytes.len() > HASH_CHARS && bytes[HASH_CHARS] == b'-' && is_hash_part(&base[..HASH_CHARS]);
        if !hash_ok {
            return Err(StorePathError::BadHash(base.to_owned()));
        }
        if !is_name(&bytes[HASH_CHARS + 1..]) {
            return Err(StorePathError::BadName(base.to_owned()));
        }
        Ok(Self(base.to_owned()))
    }

    /// The path that `nix-store --add` gives to a tree: from its name and the hash of its NAR
    /// (Nix manual, "Complete Store Path Calculation", with method NAR, SHA-256 and no references).
    pub fn from_source(name: &str, nar_hash: &Sha256Hash) -> Result<Self, StorePathError> {
        if !is_name(name.as_bytes()) {
            return Err(StorePathError::BadName(name.to_owned()));
        }
        let fingerprint = format!("source:{nar_hash}:{STORE_DIR}:{name}");
        let digest = Sha256Hash::of(fingerprint.as_bytes());
        Ok(Self(format!("{}-{name}", base32::encode(&digest.compressed()))))
    }

    /// Parses a full store path without anything after it.
    pub fn parse(path: &str) -> Result<Self, StorePathError> {
        match Self::split(path)? {
            (store_path, "") => Ok(store_path),
            _ => Err(StorePathError::BadName(path.to_owned())),
        }
    }

    /// Splits a path inside the store into its store path and the rest (`""` or `/bin/hello`).
    pub fn split(path: &str) -> Result<(Self, &str), StorePathError> {
        let inside = path
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::NotInStore(path.to_owned()))?;
        let end = inside.find('/').unwrap_or(inside.len());
        Ok((Self::from_base_name(&inside[..end])?, &inside[end..]))
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// The part behind the hash and its dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_CHARS + 1..]
    }

    /// The 32 base32 characters of the hash part.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_CHARS]
    }
}

/// Whether this could be the hash part of a store path.
pub fn is_hash_part(text: &str) -> bool {
    text.len() == HASH_CHARS && text.bytes().all(base32::in_alphabet)
}

/// Whether Nix allows this as the name part of a store path.
pub fn is_name(name: &[u8]) -> bool {
    let allowed = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.' | b'_' | b'?' | b'=');
    let dots = name == b"." || name == b".." || name.starts_with(b".-") || name.starts_with(b"..-");
    !name.is_empty() && name.len() <= NAME_MAX_CHARS && name.iter().all(allowed) && !dots
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for StorePath {
    type Err = StorePathError;
    fn from_str(s: &str) -> Result<Self, StorePathError> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_inside_the_store_splits_into_path_and_rest() {
        let (path, rest) =
            StorePath::split("/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello-2.12/bin/hello").unwrap();
        assert_eq!((path.name(), rest), ("hello-2.12", "/bin/hello"));
        assert_eq!(path.to_string(), "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello-2.12");
    }

    #[test]
    fn foreign_paths_bad_hashes_and_bad_names_are_told_apart() {
        assert!(matches!(StorePath::parse("/usr/bin/env"), Err(StorePathError::NotInStore(_))));
        assert!(matches!(StorePath::parse("/nix/store/eeee-x"), Err(StorePathError::BadHash(_))));
        let hash = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq";
        for name in ["", "a b", "a\0b", ".", ".."] {
            let path = format!("/nix/store/{hash}-{name}");
            assert!(matches!(StorePath::parse(&path), Err(StorePathError::BadName(_))), "{path:?}");
        }
    }
}
