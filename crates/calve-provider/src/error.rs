//! What goes wrong at providers.

use std::time::Duration;

/// Why a provider could not do it. Shown as one sentence that names the provider and the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{provider}: {message}{}", request.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default())]
pub struct ProviderError {
    /// The provider's name.
    pub provider: &'static str,
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One sentence for people.
    pub message: String,
    /// The provider's name for the request, for its support.
    pub request: Option<String>,
}

/// Kinds of failures; they say whether trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The credentials are unknown to the provider.
    Credentials,
    /// The credentials do not allow it.
    Denied,
    /// It does not exist.
    NotFound,
    /// The request makes no sense to the provider: an unknown size, an image that is not in the region.
    Refused,
    /// The account may have no more; once something is let go, it may.
    Quota,
    /// Somebody works on it at this moment: nothing was done, and it passes.
    Locked,
    /// Too many requests; after this time the provider answers again.
    RateLimited(Duration),
    /// No answer came: it may have been done all the same.
    NoAnswer,
    /// The provider was not reached: nothing was done.
    Unreachable,
    /// The provider failed at it: it may have been done all the same.
    Failed,
}

impl ProviderError {
    /// A failure without a request.
    pub fn new(provider: &'static str, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { provider, kind, message: message.into(), request: None }
    }

    /// Whether trying again may help.
    pub fn may_pass(&self) -> bool {
        match self.kind {
            ErrorKind::Credentials | ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Refused => false,
            ErrorKind::Quota | ErrorKind::RateLimited(_) | ErrorKind::NoAnswer => true,
            ErrorKind::Unreachable | ErrorKind::Failed | ErrorKind::Locked => true,
        }
    }

    /// Whether it may have been done all the same.
    pub fn is_uncertain(&self) -> bool {
        matches!(self.kind, ErrorKind::NoAnswer | ErrorKind::Failed)
    }
}
