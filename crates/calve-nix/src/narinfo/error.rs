//! Why a narinfo is refused.

use super::NARINFO_MAX_BYTES;
use crate::compression::CompressionError;
use crate::content_address::ContentAddressError;
use crate::hash::HashError;
use crate::sign::KeyError;
use crate::store_path::StorePathError;

/// A text that is no narinfo; lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// It is too large.
    #[error("a narinfo of {0} bytes is refused: the limit is {NARINFO_MAX_BYTES}")]
    TooLarge(usize),
    /// It is no UTF-8.
    #[error("line {line} of the narinfo is no text")]
    NotText {
        /// Where.
        line: usize,
    },
    /// A line is no field.
    #[error("line {line} of the narinfo is no field's name, a colon, a space and a value")]
    NoField {
        /// Where.
        line: usize,
    },
    /// The last line has no end.
    #[error("line {line} of the narinfo is cut short")]
    Unended {
        /// Where.
        line: usize,
    },
    /// A field's value is wrong.
    #[error("line {line} of the narinfo, {field}: {problem}")]
    Field {
        /// Where.
        line: usize,
        /// The field's name.
        field: String,
        /// What is wrong with its value.
        problem: FieldProblem,
    },
    /// A field is missing that every narinfo has.
    #[error("the narinfo has no {field}")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
}

/// What is wrong with the value of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// It stands for the second time.
    #[error("it stands twice")]
    Repeated,
    /// It is no decimal number below 2^64.
    #[error("{0:?} is no number of bytes")]
    NoSize(String),
    /// No archive has zero bytes.
    #[error("no archive has 0 bytes")]
    Zero,
    /// It is empty or has spaces or control characters.
    #[error("{0:?} is empty or has spaces or control characters")]
    NotPlain(String),
    /// No store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// No hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// No compression.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// No signature.
    #[error(transparent)]
    Signature(#[from] KeyError),
    /// No content address.
    #[error(transparent)]
    ContentAddress(#[from] ContentAddressError),
}
