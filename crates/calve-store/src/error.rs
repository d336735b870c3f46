//! What can go wrong with store paths on disk.

use std::io;
use std::path::{Path, PathBuf};

use calve_nix::{StorePath, StorePathError};
use calve_tree::WalkError;

/// Why something could not be done with the store; the message is one sentence, [`StoreError::hint`] says what helps.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write to`.
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
    /// What is to be added holds the store that it would be copied to.
    #[error("{} holds the store itself, at {}", path.display(), root.display())]
    HoldsStore {
        /// What was to be added.
        path: PathBuf,
        /// The private store.
        root: PathBuf,
    },
    /// The name that a store path would get is not allowed.
    #[error("{name:?} cannot be the name of a store path")]
    BadName {
        /// The name.
        name: String,
        /// Why.
        source: StorePathError,
    },
    /// A file was written to or replaced while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Nobody calls the path valid.
    #[error("{path} is not valid: neither the Nix database nor the private store knows it")]
    Unknown {
        /// The path.
        path: StorePath,
    },
    /// The path is called valid but its files are gone.
    #[error("{path} is registered as valid, but {} does not exist", host_path.display())]
    MissingOnDisk {
        /// The path.
        path: StorePath,
        /// Where its files should lie.
        host_path: PathBuf,
    },
    /// A reference of a valid path is not there.
    #[error("the closure is incomplete: {path} refers to {missing}, which is not there")]
    Incomplete {
        /// The path that lacks something.
        path: StorePath,
        /// What it lacks: a store path, or what the database still knows of it.
        missing: String,
    },
    /// Symbolic links that lead to each other without end, or too many in a row.
    #[error("{} leads through more than {max} symbolic links", path.display(), max = crate::locate::LINKS_MAX)]
    TooManyLinks {
        /// Where it began.
        path: PathBuf,
    },
    /// A symbolic link in a store path leads to a place that no machine has.
    #[error("{} leads out of the store, to {}", path.display(), target.display())]
    LeadsOut {
        /// The path inside the store.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The Nix database could not be read.
    #[error("cannot read the Nix database {}", path.display())]
    NixDb {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// `nix-store`, asked because the database cannot be read directly, failed.
    #[error("{} cannot be read directly, and nix-store failed: {message}", path.display())]
    NixCommand {
        /// The database file.
        path: PathBuf,
        /// What it wrote to standard error, or why it could not be run.
        message: String,
    },
    /// An entry of the private store's register or of the Nix database makes no sense.
    #[error("{} is damaged: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        message: String,
    },
    /// A closure does not fit into one image.
    #[error("the closure needs {blocks} blocks of 4 KiB, and an image holds at most {max}", max = u32::MAX)]
    ImageTooLarge {
        /// Blocks that it needs.
        blocks: u64,
    },
}

impl From<WalkError> for StoreError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Io { action, path, source } => Self::Io { action, path, source },
            WalkError::SpecialFile { path, kind } => Self::SpecialFile { path, kind },
            WalkError::Changed { path } => Self::Changed { path },
        }
    }
}

impl StoreError {
    /// Wraps what the operating system said while doing `action` on `path`; for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        if self.is_disk_full() {
            return Some("free some disk space or raise the quota, then try again".to_owned());
        }
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the spelling of the path".to_owned()),
                io::ErrorKind::PermissionDenied => Some("check who owns it and its permissions".to_owned()),
                _ => None,
            },
            Self::SpecialFile { .. } => {
                Some("remove it, or add a directory that does not hold it".to_owned())
            }
            Self::HoldsStore { .. } => Some("add a directory inside it".to_owned()),
            Self::BadName { .. } => {
                Some("rename it to letters, digits and +-._?=, at most 211 characters".to_owned())
            }
            Self::Changed { .. } => Some("wait until nothing writes to it, then try again".to_owned()),
            Self::Unknown { path } => {
                Some(format!("build it or fetch it first, for example with: nix-store --realise {path}"))
            }
            Self::MissingOnDisk { path, .. } => Some(repair(&path.to_string())),
            Self::Incomplete { missing, .. } => Some(repair(missing)),
            Self::NixCommand { .. } => {
                Some("run as a user who may read the Nix database, or start nix-daemon".to_owned())
            }
            Self::TooManyLinks { .. }
            | Self::LeadsOut { .. }
            | Self::NixDb { .. }
            | Self::Damaged { .. }
            | Self::ImageTooLarge { .. } => None,
        }
    }

    /// Whether the disk is full or a quota is used up.
    pub fn is_disk_full(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn repair(path: &str) -> String {
    if path.starts_with(calve_nix::store_path::STORE_DIR) {
        return format!("fetch or build it again, for example with: nix-store --repair-path {path}");
    }
    "check the Nix store, for example with: nix-store --verify".to_owned()
}

/// An error with everything behind it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
