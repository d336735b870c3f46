//! Nix formats, pure: base32, hashes, store paths, archives, narinfo and what else lies in a binary cache, signatures.
//!
//! *Invariant*: no I/O beyond `Read` and `Write` handed in, no async, no clock; the same bytes give the same result.

pub mod base32;
pub mod cache_file;
pub mod cache_info;
pub mod compression;
pub mod content_address;
pub mod hash;
pub mod listing;
pub mod nar;
pub mod narinfo;
pub mod realisation;
pub mod references;
pub mod sign;
pub mod store_path;

pub use cache_file::CacheFile;
pub use cache_info::CacheInfo;
pub use compression::Compression;
pub use content_address::ContentAddress;
pub use hash::{AnyHash, HashAlgorithm, HashError, HashReader, HashWriter, Sha256Hash};
pub use listing::Listing;
pub use nar::{NarError, NarEvent, NarReadError, NarReader, NarWriter};
pub use narinfo::{NarInfo, NarInfoError};
pub use realisation::{Realisation, RealisationId};
pub use sign::{PublicKey, SecretKey, Signature, TrustedKeys};
pub use store_path::{StorePath, StorePathError};
