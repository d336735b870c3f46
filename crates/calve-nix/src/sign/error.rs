//! Why a key or a signature is refused. No text of a key is ever repeated.

use super::KEY_NAME_MAX_BYTES;

/// A text that is no key or signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no colon between name and base64.
    #[error("a key or signature is a name, a colon and base64, but here is no colon")]
    NoColon,
    /// The name is empty, too long, or has a colon, space or control character.
    #[error(
        "{0:?} cannot name a key: 1 to {KEY_NAME_MAX_BYTES} bytes without colons, spaces and control characters"
    )]
    BadName(String),
    /// What follows the name is no base64.
    #[error("what follows {name:?} and the colon is no base64")]
    NotBase64 {
        /// The key's name.
        name: String,
    },
    /// There are too few or too many bytes.
    #[error("{name:?} is followed by {found} bytes in base64, not by {wanted}")]
    BadLength {
        /// The key's name.
        name: String,
        /// Bytes that were found.
        found: usize,
        /// Bytes that belong there.
        wanted: usize,
    },
    /// The public half of a secret key is not that of its secret half.
    #[error("the halves of the secret key {name:?} do not belong together")]
    HalvesDiffer {
        /// The key's name.
        name: String,
    },
}

/// Why no signature counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is no signature at all.
    #[error("it is not signed")]
    Unsigned,
    /// Only strangers signed.
    #[error("it is signed by {}, but by no trusted key", .by.join(", "))]
    NoTrustedKey {
        /// Names of the keys that are said to have signed.
        by: Vec<String>,
    },
    /// A signature has a trusted key's name but was not made by that key over this.
    #[error("the signature by {name} is wrong")]
    Wrong {
        /// The trusted key's name.
        name: String,
    },
}
