//! State: a key-value store with revisions; one trait, one file a backend, one conformance suite.

pub mod embedded;
pub mod memory;

use async_trait::async_trait;
use bytes::Bytes;

pub use embedded::EmbeddedState;

/// Largest value: what NATS KV carries with room for its headers; a record is a few KiB.
pub const VALUE_MAX_BYTES: usize = 512 * 1024;

/// The longest environment fits with room for the rest of a record, unless much of it has to be escaped in JSON.
const _: () = assert!(calve_core::limits::ENV_MAX_BYTES + 16 * 1024 <= VALUE_MAX_BYTES);

/// Longest key: what every backend can carry; ours are below 80.
pub const KEY_MAX_BYTES: usize = 255;

/// Position of a change in the order of all changes of a store; counts from 1.
pub type Revision = u64;

/// A key with its value as of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key: `[-/_=.a-zA-Z0-9]+`.
    pub key: String,
    /// The revision of its last change.
    pub revision: Revision,
    /// Its value.
    pub value: Bytes,
}

/// What changed behind a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Keys whose value was set, as they are now.
    pub set: Vec<Entry>,
    /// Keys that have no value any more.
    pub removed: Vec<String>,
    /// The revision of this moment.
    pub revision: Revision,
}

/// What must be true of a key for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key has no value.
    Absent,
    /// The key was last changed at this revision.
    Revision(Revision),
}

/// How soon a change must survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the call returns.
    Now,
    /// With the next change that is `Now`; a killed process loses nothing either way, a power failure may.
    Soon,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The expectation does not hold: look again and decide anew. Waiting does not help.
    #[error("the key {key:?} was changed by somebody else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The key or value breaks a limit. Waiting does not help.
    #[error("{0}")]
    Invalid(String),
    /// No space left. Waiting may help.
    #[error("the state directory's disk is full")]
    Full,
    /// The store is at fault. Waiting may help.
    #[error("the state store failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A key-value store with revisions.
///
/// Guarantees: changes of one store are totally ordered; `put` and `delete` check their expectation and change in one
/// step; `list` shows one moment; after `changed` returned a revision, `list` shows that revision or a later one.
#[async_trait]
pub trait State: Send + Sync {
    /// The key's value, if it has one.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StateError>;

    /// Every key that begins with `prefix`, in order, and the revision of that moment.
    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StateError>;

    /// What changed under `prefix` behind the revision `seen`; none where the store does not remember that far, so that
    /// everything must be listed.
    async fn list_since(&self, prefix: &str, seen: Revision) -> Result<Option<Changes>, StateError> {
        let _ = (prefix, seen);
        Ok(None)
    }

    /// Sets the key's value; gives the change's revision.
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> Result<Revision, StateError>;

    /// Removes the key's value; gives the change's revision. Removing an absent value under `Any` succeeds.
    async fn delete(&self, key: &str, expect: Expect, durability: Durability)
    -> Result<Revision, StateError>;

    /// Waits until the store's revision is above `seen`, and gives it: "look again".
    async fn changed(&self, seen: Revision) -> Revision;
}

/// Refuses a key that some backend could not hold.
fn check_key(key: &str) -> Result<(), StateError> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-/_=.".contains(&c);
    if !key.is_empty() && key.len() <= KEY_MAX_BYTES && key.bytes().all(allowed) {
        return Ok(());
    }
    Err(StateError::Invalid(format!("the key {key:?} is not 1 to {KEY_MAX_BYTES} of -/_=.a-zA-Z0-9")))
}

/// Refuses a value that some backend could not hold.
fn check_value(key: &str, value: &[u8]) -> Result<(), StateError> {
    if value.len() <= VALUE_MAX_BYTES {
        return Ok(());
    }
    Err(StateError::Invalid(format!(
        "the value of {key:?} has {} bytes, at most {VALUE_MAX_BYTES} can be stored",
        value.len()
    )))
}
