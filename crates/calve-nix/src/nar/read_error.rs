//! Why an archive is refused.

use std::error::Error;
use std::fmt;
use std::io;

use super::{DEPTH_MAX, NAME_MAX_BYTES, TARGET_MAX_BYTES};

/// An archive that is refused, and where.
#[derive(Debug)]
pub struct NarReadError {
    /// Bytes of the archive before the string, padding or contents that are wrong.
    pub offset: u64,
    /// What is wrong there.
    pub problem: NarProblem,
}

impl fmt::Display for NarReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of the archive: {}", self.offset, self.problem)
    }
}

impl Error for NarReadError {
    /// The problem stands in the text already; what lies below it does not.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum NarProblem {
    /// Another tag than the format has here.
    #[error("{found} stands where {expected} belongs")]
    UnexpectedTag {
        /// The tags that may stand here.
        expected: &'static str,
        /// What stands here, shortened.
        found: Found,
    },
    /// Bytes that fill a string up to a multiple of 8 are not zero.
    #[error("the padding is not zero")]
    Padding,
    /// An entry's name cannot stand in a directory.
    #[error("{0:?} cannot be the name of a directory entry")]
    BadName(String),
    /// An entry's name is too long.
    #[error("the name of an entry has {0} bytes, more than {NAME_MAX_BYTES}")]
    LongName(u64),
    /// The names of a directory must ascend in the order of their bytes, each once.
    #[error("the entry {name:?} comes after {previous:?}: names must ascend, each once")]
    OutOfOrder {
        /// The name before it in the directory.
        previous: String,
        /// The name that should have come earlier.
        name: String,
    },
    /// A symbolic link's target is empty or has a zero byte: no link can be made of it.
    #[error("a symbolic link cannot point to {0:?}")]
    BadTarget(String),
    /// A symbolic link's target is too long.
    #[error("the target of a symbolic link has {0} bytes, more than {TARGET_MAX_BYTES}")]
    LongTarget(u64),
    /// Directories are nested too deeply.
    #[error("directories are nested more than {DEPTH_MAX} deep")]
    TooDeep,
    /// A file says that it is larger than the archive that holds it.
    #[error("a file of {size} bytes does not fit into the {left} bytes that the archive has left")]
    FileTooLarge {
        /// The file's size as the archive gives it.
        size: u64,
        /// Bytes that the archive has after it, by its own size.
        left: u64,
    },
    /// The stream ends inside the archive.
    #[error("the archive ends too early")]
    Truncated,
    /// Bytes follow the end of the archive.
    #[error("bytes follow the end of the archive")]
    TrailingBytes,
    /// The archive ends earlier or goes on longer than it was said to.
    #[error("the archive does not end after the {0} bytes that it should have")]
    WrongSize(u64),
    /// The stream could not be read.
    #[error("the stream cannot be read")]
    Io(#[source] io::Error),
}

/// What stands in the place of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A short string.
    Text(String),
    /// A string too long for a tag, with its length in bytes.
    Length(u64),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Length(bytes) => write!(f, "a string of {bytes} bytes"),
        }
    }
}

impl From<NarReadError> for io::Error {
    /// For adapters that must answer with an I/O error: damage is `InvalidData`, a stream cut short `UnexpectedEof`.
    fn from(error: NarReadError) -> Self {
        let kind = match &error.problem {
            NarProblem::Io(source) => source.kind(),
            NarProblem::Truncated => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
