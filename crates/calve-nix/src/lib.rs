//! Nix formats, pure: base32, hashes, store paths, NAR.
//!
//! *Invariant*: no I/O beyond `Read` and `Write` handed in, no async, no clock; the same bytes give the same result.

pub mod base32;
pub mod hash;
pub mod nar;
pub mod store_path;

pub use hash::{HashError, HashWriter, Sha256Hash};
pub use nar::{NarError, NarEvent, NarReadError, NarReader, NarWriter};
pub use store_path::{StorePath, StorePathError};
