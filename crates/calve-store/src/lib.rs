//! Closures on disk: which store paths there are and what they refer to, adding plain files, images for guests.
//!
//! *Invariant*: knows no machines and no network. A path counts only if the Nix database or this store's own register
//! calls it valid.

mod add;
pub mod archive;
pub mod closure;
pub mod erofs;
pub mod error;
pub mod image;
mod locate;
mod nix_db;
pub mod program;
mod register;
mod requisites;
mod resolve;
mod scratch;
pub mod store;
mod tree;

pub use closure::{Closure, ClosurePath};
pub use error::StoreError;
pub use image::prune_images;
pub use locate::{InStore, Located};
pub use program::{ProgramError, check_program};
pub use store::{Store, StoreOptions};
