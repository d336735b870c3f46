//! What can go wrong with a tree.

use std::io;
use std::path::{Path, PathBuf};

use calve_nix::NarError;

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that is neither regular, directory nor symbolic link.
    #[error("{} is a {kind}, which a store path cannot hold", path.display())]
    SpecialFile {
        /// The file.
        path: PathBuf,
        /// `socket`, `named pipe`, …
        kind: &'static str,
    },
    /// A file was written to or replaced while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

impl WalkError {
    /// Wraps what the operating system said while reading `path`; for `map_err`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: "read", path: path.to_owned(), source }
    }
}

/// What a failed archive of what lies at `path` says of it.
pub fn nar_error(error: NarError, path: &Path) -> WalkError {
    match error {
        NarError::Io(source) => WalkError::Io { action: "archive", path: path.to_owned(), source },
        // The walk gives whole trees in order: only a file that shrank is left.
        NarError::ShortFile { .. } | NarError::BadName(_) | NarError::OutOfOrder(_) | NarError::NotATree => {
            WalkError::Changed { path: path.to_owned() }
        }
    }
}
