//! Trees on disk as Nix archives: walked in the order of an archive, and read at any place of it without making it. For
//! whoever has store paths without being a store: the engine, and agents.
//!
//! *Invariant*: it writes nothing, and gives no promise about what it reads: files may change meanwhile.

mod error;
mod view;
mod walk;

pub use error::{WalkError, nar_error};
pub use view::NarView;
pub use walk::{Node, Opener, Step, Walk, file_metadata, is_executable, open_file};
