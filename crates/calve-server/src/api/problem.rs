//! Errors as a client sees them: `application/problem+json` with a kind, one sentence and a hint.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use calve_wire::api::{Problem, ProblemKind};

use crate::chain;
use crate::state::StateError;

/// The error of every handler.
#[derive(Debug)]
pub struct ApiError(pub Problem);

/// What handlers give.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A problem of `kind` in one sentence.
    pub fn new(kind: ProblemKind, title: impl Into<String>) -> Self {
        Self(Problem::new(kind, title))
    }

    /// The request makes no sense.
    pub fn bad_request(title: impl Into<String>) -> Self {
        Self::new(ProblemKind::BadRequest, title)
    }

    /// The server is at fault: the whole chain goes to its log, the client gets the sentence.
    pub fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        let chain = chain(error);
        tracing::error!("{what}: {chain}");
        Self::new(ProblemKind::Internal, format!("{what}: {chain}"))
            .hint("see server.log in the server's data directory (`calve server status` names it)")
    }

    /// The disk of the data directory is full.
    pub fn disk_full() -> Self {
        Self::new(ProblemKind::DiskFull, "the disk of the server's data directory is full").hint(
            "free some space there (`calve prune` removes ended machines and their logs), then try again",
        )
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.hint(hint))
    }
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Full => Self::disk_full(),
            StateError::Invalid(why) => Self::bad_request(why),
            StateError::Conflict { .. } => {
                Self::new(ProblemKind::Conflict, "somebody else changed the machine at the same time")
                    .hint("try again")
            }
            error @ StateError::Failed(_) => Self::internal("the state cannot be used", &error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).expect("a problem holds nothing that JSON cannot say");
        let content_type = HeaderValue::from_static("application/problem+json");
        (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
    }
}
