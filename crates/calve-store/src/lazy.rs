//! Lazy delivery: a closure is mounted before its bytes are here, blocks come as they are touched, each verified.
//!
//! ```text
//! commit:  archive ─▶ hash ─▶ Tree ─▶ listing, cut and stored     recipe + listing ─▶ Proof, signed by the cache
//! mount:   closure ─▶ manifests ─▶ proofs ─▶ recipes, listings ─▶ mounted         (a constant number of requests)
//! read:    file, range ─▶ pieces of the recipe ─▶ chunks (memory, disk, caches) ─▶ ids checked ─▶ references restored
//! ```

#[cfg(feature = "lazy")]
mod chunks;
#[cfg(feature = "lazy")]
mod closure;
#[cfg(feature = "lazy")]
mod file_system;
#[cfg(feature = "lazy")]
mod inodes;
#[cfg(feature = "lazy")]
mod mount;
#[cfg(feature = "lazy")]
mod prefetch;
pub mod proof;
#[cfg(feature = "lazy")]
mod ring;
pub mod tree;

pub use proof::Proof;
pub use tree::{Tree, TreeError};

#[cfg(feature = "lazy")]
pub use chunks::{Chunks, ChunksOptions, READ_MAX};
#[cfg(feature = "lazy")]
pub use closure::{LazyClosure, LazyError, LazyPath};
#[cfg(feature = "lazy")]
pub use mount::{Mount, MountError};
