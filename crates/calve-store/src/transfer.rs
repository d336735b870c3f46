//! What can go wrong while a closure moves.

use std::io;

use calve_nix::sign::VerifyError;
use calve_nix::{NarReadError, Sha256Hash, StorePath};

use crate::StoreError;
use crate::remote::RemoteError;

/// Why a closure was not pushed or pulled; the message is one sentence that names the object.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache, or the last of several that were asked, failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There is no cache to pull from.
    #[error("no cache is known to pull {path} from")]
    NoCache {
        /// The path that is wanted.
        path: StorePath,
    },
    /// No signature on the path counts.
    #[error("{path} from the cache {cache} cannot be trusted: {reason}")]
    Untrusted {
        /// The path.
        path: StorePath,
        /// Which cache said that.
        cache: String,
        /// What is wrong with its signatures.
        reason: VerifyError,
    },
    /// A cache sent something other than what was asked for.
    #[error("{what} from the cache {cache} is damaged: {message}")]
    Damaged {
        /// A path, chunk or recipe.
        what: String,
        /// Where it came from.
        cache: String,
        /// What is wrong with it.
        message: String,
    },
    /// A cache names a path without something that it refers to, and it is not here either.
    #[error("the closure from the cache {cache} is incomplete: {path} refers to {missing}")]
    Incomplete {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What it refers to.
        missing: StorePath,
    },
    /// The archive that chunks and recipe give is none.
    #[error("the archive of {path} is damaged")]
    Archive {
        /// The path.
        path: StorePath,
        /// What is wrong, and where.
        source: NarReadError,
    },
    /// The archive that chunks and recipe give is another one.
    #[error("the archive of {path} has the hash {found} instead of {wanted}")]
    WrongHash {
        /// The path.
        path: StorePath,
        /// What was signed.
        wanted: Sha256Hash,
        /// What came.
        found: Sha256Hash,
    },
    /// What is known of a path cannot be: Nix would stumble over it.
    #[error("{path} is not taken: {message}")]
    WrongAddress {
        /// The path.
        path: StorePath,
        /// What is wrong with its content address.
        message: String,
    },
    /// The index of local chunks failed.
    #[error("cannot use the index of local chunks")]
    Index(#[from] rusqlite::Error),
    /// A path's files could not be archived.
    #[error("cannot read the files of {path}")]
    Read {
        /// The path.
        path: StorePath,
        /// What the operating system said.
        source: io::Error,
    },
    /// Chunks could not be compressed.
    #[error("cannot compress at level {level}")]
    Compress {
        /// The level of zstd.
        level: i32,
        /// What zstd said.
        source: io::Error,
    },
    /// The Nix store refused to take paths.
    #[error("Nix did not register {paths} paths: {message}")]
    NixRegistration {
        /// How many were to be registered.
        paths: usize,
        /// What `nix-store` wrote, or why it could not be run.
        message: String,
    },
    /// The transfer was given up.
    #[error("the transfer was given up")]
    Cancelled,
}

impl TransferError {
    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Untrusted { reason, .. } => Some(match reason {
                VerifyError::Unsigned => {
                    "sign it when it is pushed, or pull it from a cache that signs".to_owned()
                }
                _ => "if you trust that key, add it to the trusted public keys".to_owned(),
            }),
            Self::NoCache { .. } => Some("name a cache to pull from".to_owned()),
            Self::Remote(RemoteError::Unreachable { .. }) => Some(
                "check the cache's address and the network, then try again: what came already stays"
                    .to_owned(),
            ),
            Self::Remote(RemoteError::Denied { .. }) => {
                Some("check the token that is used for this cache".to_owned())
            }
            Self::Damaged { .. }
            | Self::WrongHash { .. }
            | Self::WrongAddress { .. }
            | Self::Archive { .. } => {
                Some("let the cache verify and repair itself, or pull from another cache".to_owned())
            }
            Self::Incomplete { .. } => Some("push the whole closure to the cache again".to_owned()),
            Self::NixRegistration { .. } => {
                Some("check the Nix store, for example with: nix-store --verify".to_owned())
            }
            Self::Remote(_)
            | Self::Index(_)
            | Self::Read { .. }
            | Self::Compress { .. }
            | Self::Cancelled => None,
        }
    }
}
