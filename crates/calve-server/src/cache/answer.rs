//! What a cache answers when it refuses or fails.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use calve_store::cache::DISK_FULL;
use calve_store::http::{Problem, ProblemKind};
use calve_store::remote::RemoteError;

/// The error of every handler.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    problem: Problem,
}

/// What handlers give.
pub type Answered<T = Response> = Result<T, Refusal>;

impl Refusal {
    /// A refusal in one sentence.
    pub fn new(status: StatusCode, kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { status, problem: Problem::new(kind, message) }
    }

    /// The request makes no sense, or holds something damaged.
    pub fn damaged(what: impl Into<String>, message: impl Into<String>) -> Self {
        let problem = Problem { kind: ProblemKind::Damaged, what: what.into(), message: message.into() };
        Self { status: StatusCode::BAD_REQUEST, problem }
    }

    /// There is none of that.
    pub fn missing(what: impl Into<String>) -> Self {
        let message = "it is not there".to_owned();
        Self {
            status: StatusCode::NOT_FOUND,
            problem: Problem { kind: ProblemKind::Missing, what: what.into(), message },
        }
    }

    /// Nobody in particular asks, or with a token that is none. Says the same of everything, there or not.
    pub fn unauthorized() -> Self {
        let message = "it takes a token for this, and the one given is missing, revoked or wrong";
        Self::new(StatusCode::UNAUTHORIZED, ProblemKind::Denied, message)
    }

    /// The token is known and allows less.
    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, ProblemKind::Denied, message)
    }

    /// The body has more bytes than are taken.
    pub fn too_large(max: usize) -> Self {
        let message = format!("the request has more than {max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ProblemKind::Failed, message)
    }

    /// The cache failed: its log has the whole chain, who asked gets it too.
    pub fn failed(what: &str, error: &dyn std::error::Error) -> Self {
        let chain = crate::chain(error);
        tracing::error!("{what}: {chain}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ProblemKind::Failed, format!("{what}: {chain}"))
    }

    /// What it says.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Whether it says that something is not there.
    pub fn is_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

impl From<RemoteError> for Refusal {
    fn from(error: RemoteError) -> Self {
        let status = match &error {
            RemoteError::Unreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            RemoteError::Denied { .. } => StatusCode::FORBIDDEN,
            RemoteError::Missing { .. } => StatusCode::NOT_FOUND,
            RemoteError::Damaged { .. } => StatusCode::BAD_REQUEST,
            RemoteError::Failed { message, .. } if message == DISK_FULL => {
                tracing::error!("the cache's disk is full");
                StatusCode::INSUFFICIENT_STORAGE
            }
            RemoteError::Failed { .. } => {
                tracing::error!("{}", crate::chain(&error));
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self { status, problem: Problem::of(&error) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut json = self.problem.to_json();
        json.push(b'\n');
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            let ways = HeaderValue::from_static("Basic realm=\"calve cache\"");
            headers.insert(header::WWW_AUTHENTICATE, ways);
        }
        response
    }
}
