//! What is known of a valid path besides its bytes.

use std::collections::BTreeSet;

use calve_nix::content_address::{FileCheck, IngestionMethod};
use calve_nix::{ContentAddress, HashAlgorithm, Sha256Hash, StorePath};

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

    /// Its content address, where it has one. One that cannot be read, from which another store path follows, or that says
    /// something else than the hash of the archive, is refused with the reason: Nix relies on what its database says there.
    pub fn content_address(&self) -> Result<Option<ContentAddress>, String> {
        let Some(text) = &self.ca else { return Ok(None) };
        let wrong = |why: String| format!("its content address {text:?} is wrong: {why}");
        let address: ContentAddress = text
            .parse()
            .map_err(|error: calve_nix::content_address::ContentAddressError| wrong(error.to_string()))?;
        let to_self = self.refers_to_itself();
        let others: BTreeSet<_> =
            self.references.iter().filter(|path| **path != self.path).cloned().collect();
        match address.store_path(self.path.name(), &others, to_self) {
            Ok(path) if path == self.path => {}
            Ok(path) => return Err(wrong(format!("the store path {path} follows from it"))),
            Err(error) => return Err(wrong(error.to_string())),
        }
        match self.tree_hash(&address) {
            Some(hash) if *hash != *self.nar_hash.as_bytes() => {
                Err(wrong(format!("its archive has the hash {}", self.nar_hash.to_nix())))
            }
            _ => Ok(Some(address)),
        }
    }

    /// Whether nobody needs to vouch for the path, because its name follows from its bytes, and both are compared: here, or
    /// by [`Self::file_check`] as they come.
    pub fn is_proven_by_contents(&self) -> bool {
        match self.content_address() {
            Ok(Some(address)) => self.tree_hash(&address).is_some() || FileCheck::new(&address).is_some(),
            Ok(None) | Err(_) => false,
        }
    }

    /// What compares the path's bytes with its content address, where the hash of the archive does not say it all.
    pub fn file_check(&self) -> Option<FileCheck> {
        FileCheck::new(&self.content_address().ok()??)
    }

    fn refers_to_itself(&self) -> bool {
        self.references.contains(&self.path)
    }

    /// The hash of the archive by an address that says it. Where the path refers to itself, it is that of other bytes.
    fn tree_hash<'a>(&self, address: &'a ContentAddress) -> Option<&'a [u8]> {
        match address {
            ContentAddress::Fixed { method: IngestionMethod::Nar, hash }
                if hash.algorithm() == HashAlgorithm::Sha256 && !self.refers_to_itself() =>
            {
                Some(hash.digest())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, ca: &str, references: &[StorePath], to_self: bool) -> PathInfo {
        let address: ContentAddress = ca.parse().unwrap();
        let path = address.store_path(name, &references.iter().cloned().collect(), to_self).unwrap();
        let mut references = references.to_vec();
        references.extend(to_self.then(|| path.clone()));
        references.sort_unstable();
        PathInfo {
            path,
            nar_hash: Sha256Hash::of(b"archive"),
            nar_size: 7,
            references,
            deriver: None,
            ca: Some(ca.to_owned()),
            signatures: Vec::new(),
        }
    }

    #[test]
    fn a_content_address_must_be_one_and_give_this_path_and_this_archive() {
        let other = info("x", "fixed:md5:3y8bwfr609h3lh9ch0izcqq7fl", &[], false).path;
        let tree = format!("fixed:r:{}", Sha256Hash::of(b"archive").to_nix());
        let text = format!("text:{}", Sha256Hash::of(b"file").to_nix());
        let flat = format!("fixed:{}", Sha256Hash::of(b"file").to_nix());
        for (ca, references, to_self, proven) in [
            (&tree, vec![], false, true),
            (&tree, vec![other.clone()], false, true),
            // Hashed without itself: that is for a signature to say.
            (&tree, vec![other.clone()], true, false),
            (&text, vec![other.clone()], false, true),
            (&flat, vec![], false, true),
        ] {
            let right = info("a", ca, &references, to_self);
            assert_eq!(right.content_address(), Ok(Some(ca.parse().unwrap())));
            assert_eq!(right.is_proven_by_contents(), proven, "{ca}");
            let mut wrong = vec![right.clone(); 3];
            wrong[0].ca = Some(ca.replace("sha256", "sha356"));
            let another = Sha256Hash::of(b"another").to_nix();
            wrong[1].ca = Some(format!("{}{another}", &ca[..ca.find("sha256").unwrap()]));
            wrong[2].references = vec![info("b", &flat, &[], false).path];
            for wrong in wrong {
                let refused = wrong.content_address().unwrap_err();
                assert!(refused.contains("content address") && !wrong.is_proven_by_contents(), "{refused}");
            }
        }
        let mut lied = info("a", &tree, &[], false);
        lied.nar_hash = Sha256Hash::of(b"another archive");
        assert!(lied.content_address().unwrap_err().contains("its archive has the hash"));
        let mut none = lied;
        none.ca = None;
        assert!(none.content_address() == Ok(None) && !none.is_proven_by_contents());
    }
}
