//! The Nix archive (NAR): a tree of files as one stream, the same bytes for the same tree
//! (Nix manual, "Nix Archive (NAR) Format").
//!
//! ```text
//! archive   = "nix-archive-1" node
//! node      = "(" "type" ( "regular" ["executable" ""] "contents" bytes
//!                        | "symlink" "target" bytes
//!                        | "directory" { "entry" "(" "name" bytes "node" node ")" } ) ")"
//! string    = length as u64 little endian, bytes, zeros up to a multiple of 8
//! ```

mod read_error;
mod reader;
mod writer;

pub use read_error::{NarProblem, NarReadError};
pub use reader::{InContents, NarContents, NarEvent, NarReader};
pub use writer::{NarError, NarWriter};

/// The string that every archive begins with.
const MAGIC: &[u8] = b"nix-archive-1";
/// Longest name of a directory entry in bytes: no file system that Linux runs a store from takes more (`NAME_MAX`).
pub const NAME_MAX_BYTES: usize = 255;
/// Longest target of a symbolic link in bytes: `PATH_MAX` without the zero at its end.
pub const TARGET_MAX_BYTES: usize = 4095;
/// Deepest nesting of directories: Nix unpacks by path names, and a path of `PATH_MAX` (4096) bytes has no room for more.
/// It bounds what a reader holds: one name of each open directory, half a mebibyte in all.
pub const DEPTH_MAX: usize = 2048;

/// Whether a directory may hold an entry of this name.
pub fn is_entry_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
