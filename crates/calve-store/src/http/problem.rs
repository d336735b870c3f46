//! What a cache says when it refuses or fails.

use serde::{Deserialize, Serialize};

use crate::remote::RemoteError;

/// Longest text of a problem that anybody shows, in characters: it comes from a stranger.
const TEXT_MAX_CHARS: usize = 500;

/// What a cache says when it refuses or fails; JSON, so that people can read it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem.
    pub kind: ProblemKind,
    /// The object that it is about, where there is one: a path, chunk or recipe.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// One sentence.
    pub message: String,
}

/// Kinds of problems, as [`RemoteError`] tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The cache could not reach what it needs; a moment later it may.
    Unreachable,
    /// Not allowed.
    Denied,
    /// Not there.
    Missing,
    /// What was sent is not what it should be.
    Damaged,
    /// The cache failed.
    Failed,
}

impl Problem {
    /// A problem in one sentence.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { kind, what: String::new(), message: message.into() }
    }

    /// What an error says to who asked.
    pub fn of(error: &RemoteError) -> Self {
        let about = |kind, what: &str, message: &str| Self {
            kind,
            what: what.to_owned(),
            message: message.to_owned(),
        };
        match error {
            RemoteError::Unreachable { message, .. } => about(ProblemKind::Unreachable, "", message),
            RemoteError::Denied { message, .. } => about(ProblemKind::Denied, "", message),
            RemoteError::Missing { what, .. } => about(ProblemKind::Missing, what, "it is not there"),
            RemoteError::Damaged { what, message } => about(ProblemKind::Damaged, what, message),
            RemoteError::Failed { message, .. } => about(ProblemKind::Failed, "", message),
        }
    }

    /// The error that it means, said by `cache`.
    pub fn into_error(self, cache: String) -> RemoteError {
        let (what, message) = (printable(&self.what), printable(&self.message));
        match self.kind {
            ProblemKind::Unreachable => RemoteError::Unreachable { cache, message },
            ProblemKind::Denied => RemoteError::Denied { cache, message },
            ProblemKind::Missing => RemoteError::Missing { cache, what },
            ProblemKind::Damaged => RemoteError::Damaged { what, message },
            ProblemKind::Failed => RemoteError::Failed { cache, message },
        }
    }

    /// Its JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem is plain text")
    }

    /// The problem of [`Problem::to_json`]; none where the bytes say something else.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// A stranger's text as a terminal can take it.
pub(super) fn printable(text: &str) -> String {
    let text = text.trim().chars().take(TEXT_MAX_CHARS);
    text.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_way_over_the_wire() {
        let cache = || "here".to_owned();
        let errors = [
            RemoteError::Unreachable { cache: cache(), message: "m".to_owned() },
            RemoteError::Denied { cache: cache(), message: "m".to_owned() },
            RemoteError::Missing { cache: cache(), what: "w".to_owned() },
            RemoteError::Damaged { what: "w".to_owned(), message: "m".to_owned() },
            RemoteError::Failed { cache: cache(), message: "m".to_owned() },
        ];
        for error in errors {
            let told = Problem::from_json(&Problem::of(&error).to_json()).unwrap();
            assert_eq!(told.into_error(cache()).to_string(), error.to_string());
        }
        assert_eq!(Problem::from_json(b"<html>"), None);
        assert_eq!(printable(" a\x1b[31m\n"), "a [31m");
    }
}
