//! Archives unpacked as Nix unpacks them: files 0444 or 0555, directories 0555, every time one second after the epoch.
//!
//! The archive's hash is computed on the way; whether what lies there may be used is known when [`unpack`] returns.

mod blocks;
mod file;
mod helpers;
mod tree;

use std::io;
use std::path::Path;

use bytes::Bytes;
use calve_nix::nar::NarEvent;
use calve_nix::{NarReadError, NarReader, Sha256Hash};

pub use blocks::{Blocks, ReadBlocks};

use crate::StoreError;
use blocks::BlockReader;
use tree::TreeWriter;

/// Why an archive was not unpacked, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Its bytes could not be had.
    #[error("the archive cannot be read on")]
    Input(#[source] io::Error),
    /// It is no archive that Nix would write, or has not the size that it should have.
    #[error(transparent)]
    Archive(NarReadError),
    /// It is not the archive that was asked for.
    #[error("the archive has the hash {found} instead of {wanted}")]
    WrongHash {
        /// What it should have.
        wanted: Sha256Hash,
        /// What its bytes have.
        found: Sha256Hash,
    },
    /// The tree could not be written.
    #[error(transparent)]
    Store(StoreError),
}

/// Unpacks the archive that `blocks` give into `place`, which must not exist, in a directory that nobody else writes to.
/// Nothing outside of `place` is touched, whatever the archive says; a file whose twin ([`Blocks::twin`]) is sealed already
/// is a second name of that one (`link(2)`). It must have exactly `nar_size` bytes and the hash
/// `nar_hash`; after an error what was written is the caller's to remove.
///
/// A directory at the root is left writable, with a time of its own: it has yet to be moved to where it belongs
/// (`rename(2)` asks for that), and is sealed there.
pub fn unpack(
    blocks: impl Blocks,
    place: &Path,
    nar_hash: &Sha256Hash,
    nar_size: u64,
) -> Result<(), UnpackError> {
    let mut input = BlockReader::new(blocks, nar_size);
    let written = write_tree(&mut input, place, nar_size);
    if let Some(error) = input.take_failure() {
        return Err(UnpackError::Input(error));
    }
    written?;
    let found = input.finish().map_err(UnpackError::Input)?;
    if found == *nar_hash { Ok(()) } else { Err(UnpackError::WrongHash { wanted: *nar_hash, found }) }
}

fn write_tree<B: Blocks>(input: &mut BlockReader<B>, place: &Path, nar_size: u64) -> Result<(), UnpackError> {
    let mut nar = NarReader::with_size(input, nar_size);
    let mut tree = TreeWriter::new(place).map_err(UnpackError::Store)?;
    while let Some(event) = nar.next_event().map_err(UnpackError::Archive)? {
        match event {
            NarEvent::Enter { name } => tree.enter(&name),
            NarEvent::Leave => tree.leave(),
            NarEvent::Symlink { name, target } => tree.symlink(&name, &target),
            NarEvent::File { name, executable, size, offset } => {
                let twin = nar.get_ref().twin(offset, size);
                let mut contents = nar.contents();
                let next = |most| contents.take_with(most, |input, most| input.part(most), Bytes::len);
                tree.file(&name, executable, size, twin, next)?;
                continue;
            }
        }
        .map_err(UnpackError::Store)?;
    }
    nar.finish().map_err(UnpackError::Archive)?;
    tree.finish().map_err(UnpackError::Store)
}

#[cfg(test)]
mod tests;
