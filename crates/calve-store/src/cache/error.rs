//! What can go wrong inside a cache.

use std::io;
use std::path::{Path, PathBuf};

use crate::remote::RemoteError;

/// What a cache says to who sends it more than its disk holds.
pub const DISK_FULL: &str =
    "its disk is full; nothing of this was kept, and it can be sent again once there is room";

/// Why a cache did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The object storage failed.
    #[error("cannot {action} the object {object}: {source}")]
    Storage {
        /// `read`, `write`, …
        action: &'static str,
        /// Its name.
        object: String,
        /// What the storage said.
        source: object_store::Error,
    },
    /// The index failed.
    #[error("the index {} failed: {source}", path.display())]
    Index {
        /// Its file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The index belongs to other objects than those in the storage.
    #[error("the index {} belongs to another cache than the objects in {objects}", index.display())]
    Foreign {
        /// The index's file.
        index: PathBuf,
        /// The storage.
        objects: String,
    },
    /// Another process does the same right now.
    #[error("another process already {0} in this cache")]
    Busy(&'static str),
    /// It is not there.
    #[error("there is no {0}")]
    Missing(String),
    /// Bytes are not what they should be.
    #[error("{what} is damaged: {message}")]
    Damaged {
        /// A path, chunk, recipe, manifest or object.
        what: String,
        /// What is wrong with it.
        message: String,
    },
}

impl CacheError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn damaged(what: impl ToString, message: impl ToString) -> Self {
        Self::Damaged { what: what.to_string(), message: message.to_string() }
    }

    /// As the users of a cache with this name see it.
    pub fn into_remote(self, cache: &str) -> RemoteError {
        match self {
            Self::Missing(what) => RemoteError::Missing { cache: cache.to_owned(), what },
            Self::Damaged { what, message } => RemoteError::Damaged { what, message },
            // Which of its files found no room tells nobody more.
            full if full.is_disk_full() => {
                RemoteError::Failed { cache: cache.to_owned(), message: DISK_FULL.to_owned() }
            }
            other => RemoteError::Failed { cache: cache.to_owned(), message: other.to_string() },
        }
    }

    /// Whether the disk is full or a quota is used up.
    pub fn is_disk_full(&self) -> bool {
        if let Self::Index { source, .. } = self {
            return source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        }
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// What helps, where something does.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            full if full.is_disk_full() => {
                Some("free some disk space, for example with calve cache gc, or raise the quota")
            }
            Self::Storage { .. } => {
                Some("check the address, the credentials and the free space of the storage")
            }
            Self::Index { source, .. } => match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    Some("remove it: it is built anew from the objects")
                }
                _ => None,
            },
            Self::Io { .. } => Some("check the directory's permissions and free space"),
            Self::Foreign { .. } => {
                Some("give each cache its own directory and its own prefix in the storage")
            }
            Self::Busy(_) => Some("wait for it to end"),
            Self::Damaged { .. } => Some("run calve cache verify; it repairs from another cache"),
            Self::Setting(_) | Self::Missing(_) => None,
        }
    }
}
