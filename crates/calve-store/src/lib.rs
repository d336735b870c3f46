//! Closures on disk: which store paths there are and what they refer to, adding plain files, images for guests.
//!
//! *Invariant*: knows no machines and no network. A path counts only if the Nix database or this store's own register
//! calls it valid.

pub mod closure;

pub use closure::{Closure, ClosurePath};
