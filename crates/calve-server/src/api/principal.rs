//! Who asks: told by the kernel for the Unix socket, by the token for TCP.

use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::problem::ApiError;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The user of the process at the other end of the Unix socket (`SO_PEERCRED`, unix(7)).
    User(u32),
    /// Whoever holds the server's token.
    Token,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Token => f.write_str("token"),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let principal = parts.extensions.get::<Self>().cloned();
        principal.ok_or_else(|| {
            ApiError::new(calve_wire::api::ProblemKind::Internal, "the request came from nowhere known")
        })
    }
}
