//! EROFS images, written without a tool of the system: uncompressed, read by Linux 5.4 and later
//! (Linux, `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`).
//!
//! ```text
//! block 0           superblock at byte 1024
//! block 1 … m       inodes, each with what its contents exceed whole blocks by right behind it
//! block m+1 … n     the whole blocks of contents, file after file in the order of the inodes
//! ```
//! The bytes of an image follow from names, contents, executable bits and links alone: owner is root, every time is
//! second 1, permissions are those of a store. Hard links become files of their own, because whether there are any
//! differs between hosts with the same store paths; but blocks of equal files are there once.

mod dirents;
mod format;
mod layout;
mod plan;
mod twins;
mod write;

pub use format::BLOCK_BYTES;
pub use plan::Plan;
pub use write::write;
