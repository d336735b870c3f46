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
pub mod chunk_view;
pub mod closure;
pub mod cut;
mod decode;
pub mod delta;
pub mod diff;
mod encode;
pub mod erofs;
pub mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod image;
pub mod index;
pub mod lazy;
mod local;
mod locate;
mod nix_db;
mod nix_place;
pub mod normal;
mod order;
mod partial;
mod path_info;
mod place;
mod processors;
pub mod program;
pub mod progress;
pub mod prune;
pub mod pull;
pub mod push;
pub mod recipe;
mod register;
pub mod remote;
mod requisites;
mod resolve;
mod retry;
#[cfg(all(feature = "cache", feature = "http"))]
mod same_host;
mod scratch;
pub mod store;
pub mod transfer;
pub mod unpack;

pub use closure::{Closure, ClosurePath};
pub use error::{StoreError, chain};
#[cfg(feature = "http")]
pub use http::{Address, HttpRemote};
pub use image::prune_images;
pub use locate::{InStore, Located};
pub use nix_place::registration;
pub use path_info::PathInfo;
pub use place::Destination;
pub use program::{ProgramError, check_program, is_program_format};
#[cfg(all(feature = "cache", feature = "http"))]
pub use same_host::{at_hand_to_pull, at_hand_to_push};
pub use store::{Store, StoreOptions};
pub use transfer::TransferError;
