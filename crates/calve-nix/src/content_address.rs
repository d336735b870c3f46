//! Content addresses (the `CA` of a narinfo), and the store paths that follow from them
//! (`src/libstore/content-address.cc` and `src/libstore/store-api.cc` of Nix).

mod file_check;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::base32;
use crate::hash::{AnyHash, HashAlgorithm, HashError, Sha256Hash};
use crate::store_path::{STORE_DIR, StorePath, StorePathError, is_name};

pub use file_check::FileCheck;

/// What a content-addressed store path was computed from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentAddress {
    /// A text that Nix wrote into the store, such as a derivation: the hash of its bytes.
    Text(Sha256Hash),
    /// A file or tree whose hash was taken by `method`.
    Fixed {
        /// What was hashed.
        method: IngestionMethod,
        /// Its hash.
        hash: AnyHash,
    },
}

/// What the hash of a fixed content address covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IngestionMethod {
    /// The bytes of a single file.
    Flat,
    /// The NAR of a tree (`r:`).
    Nar,
    /// The Git object of a tree (`git:`).
    Git,
}

/// A text that is no content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// It begins otherwise.
    #[error("{0:?} begins neither with \"text:\" nor with \"fixed:\"")]
    BadKind(String),
    /// Its hash cannot be read.
    #[error(transparent)]
    BadHash(#[from] HashError),
}

/// Why no store path follows from a content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressedPathError {
    /// The name cannot be that of a store path.
    #[error(transparent)]
    BadName(#[from] StorePathError),
    /// References of a kind that paths with this address cannot have.
    #[error("a store path with the content address {0} cannot have these references")]
    HasReferences(ContentAddress),
}

impl IngestionMethod {
    fn prefix(self) -> &'static str {
        match self {
            Self::Flat => "",
            Self::Nar => "r:",
            Self::Git => "git:",
        }
    }
}

impl ContentAddress {
    /// The store path with this content address, name and references. `to_self` says that the path refers to itself, with
    /// the hash taken as Nix takes it then.
    pub fn store_path(
        &self,
        name: &str,
        references: &BTreeSet<StorePath>,
        to_self: bool,
    ) -> Result<StorePath, AddressedPathError> {
        if !is_name(name.as_bytes()) {
            return Err(StorePathError::BadName(name.to_owned()).into());
        }
        let refused = |refused: bool| match refused {
            true => Err(AddressedPathError::HasReferences(self.clone())),
            false => Ok(()),
        };
        let (kind, digest) = match self {
            Self::Text(hash) => {
                refused(to_self)?;
                (with_references("text", references, false), *hash)
            }
            Self::Fixed { method: IngestionMethod::Nar, hash }
                if hash.algorithm() == HashAlgorithm::Sha256 =>
            {
                let hash = hash.digest().try_into().map(|digest: [u8; 32]| Sha256Hash::from(digest));
                (with_references("source", references, to_self), hash.expect("SHA-256 has 32 bytes"))
            }
            Self::Fixed { method, hash } => {
                refused(to_self || !references.is_empty())?;
                let inner = format!("fixed:out:{}{}:", method.prefix(), hash.to_hex());
                ("output:out".to_owned(), Sha256Hash::of(inner.as_bytes()))
            }
        };
        let fingerprint = format!("{kind}:{digest}:{STORE_DIR}:{name}");
        let digest = Sha256Hash::of(fingerprint.as_bytes()).compressed();
        Ok(StorePath::from_base_name(&format!("{}-{name}", base32::encode(&digest)))?)
    }
}

fn with_references(kind: &str, references: &BTreeSet<StorePath>, to_self: bool) -> String {
    let mut kind = kind.to_owned();
    for reference in references {
        kind.push_str(&format!(":{reference}"));
    }
    if to_self {
        kind.push_str(":self");
    }
    kind
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(hash) => write!(f, "text:{}", hash.to_nix()),
            Self::Fixed { method, hash } => write!(f, "fixed:{}{hash}", method.prefix()),
        }
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        if let Some(hash) = text.strip_prefix("text:") {
            return Ok(Self::Text(hash.parse()?));
        }
        let Some(rest) = text.strip_prefix("fixed:") else {
            return Err(ContentAddressError::BadKind(text.to_owned()));
        };
        let (method, hash) = [IngestionMethod::Nar, IngestionMethod::Git]
            .into_iter()
            .find_map(|method| Some((method, rest.strip_prefix(method.prefix())?)))
            .unwrap_or((IngestionMethod::Flat, rest));
        Ok(Self::Fixed { method, hash: hash.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_others_are_refused() {
        for text in [
            "text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "fixed:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "fixed:r:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "fixed:git:sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs",
            "fixed:md5:3y8bwfr609h3lh9ch0izcqq7fl",
        ] {
            assert_eq!(text.parse::<ContentAddress>().unwrap().to_string(), text);
        }
        for bad in ["", "text:", "text:sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs", "fixed:r:", "nar:sha256:0"] {
            assert!(bad.parse::<ContentAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tree_has_the_path_that_nix_gives() {
        let hash = Sha256Hash::of(b"a NAR");
        let address = ContentAddress::Fixed { method: IngestionMethod::Nar, hash: hash.into() };
        let path = address.store_path("tree", &BTreeSet::new(), false).unwrap();
        assert_eq!(path, StorePath::from_source("tree", &hash).unwrap());
        assert!(address.store_path("a b", &BTreeSet::new(), false).is_err());
        let flat = ContentAddress::Fixed { method: IngestionMethod::Flat, hash: hash.into() };
        assert!(flat.store_path("tree", &BTreeSet::from([path]), false).is_err());
    }
}
