//! Closures on disk and on the wire: which store paths there are and what they refer to, adding plain files, images for
//! guests; chunks, and the caches that hold them.
//!
//! *Invariant*: knows no machines. A path counts only if the Nix database or this store's own register
//! calls it valid.

mod add;
pub mod archive;
#[cfg(feature = "cache")]
pub mod cache;
pub mod chunk;
pub mod closure;
pub mod cut;
pub mod erofs;
pub mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod image;
mod locate;
mod nix_db;
pub mod normal;
mod path_info;
pub mod program;
pub mod recipe;
mod register;
pub mod remote;
mod requisites;
mod resolve;
mod scratch;
pub mod store;
mod tree;

pub use closure::{Closure, ClosurePath};
pub use error::StoreError;
#[cfg(feature = "http")]
pub use http::{Address, HttpRemote};
pub use image::prune_images;
pub use locate::{InStore, Located};
pub use path_info::PathInfo;
pub use program::{ProgramError, check_program};
pub use store::{Store, StoreOptions};
