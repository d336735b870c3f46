//! What is known of a valid path besides its bytes.

use calve_nix::{Sha256Hash, StorePath};

/// A path's entry in a cache or a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// Hash of its archive.
    pub nar_hash: Sha256Hash,
    /// Size of its archive in bytes.
    pub nar_size: u64,
    /// What it refers to, itself included where it does; sorted, without doubles.
    pub references: Vec<StorePath>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// Its content address as Nix writes it, where it has one.
    pub ca: Option<String>,
    /// Signatures, `<key name>:<base64>`.
    pub signatures: Vec<String>,
}

impl PathInfo {
    /// The references in the order in which [`crate::recipe::Position::reference`] counts: by name, then by hash, so that
    /// a rebuild that changes only hashes counts alike.
    pub fn counted_references(&self) -> Vec<&StorePath> {
        let mut references: Vec<_> = self.references.iter().collect();
        references.sort_by_key(|path| (path.name(), path.hash_part()));
        references
    }
}
