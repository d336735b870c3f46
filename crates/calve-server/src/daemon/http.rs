//! One HTTP connection of the server: who is at the other end, and the router.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use calve_wire::api::{CACHE_PREFIX, ProblemKind};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::connections::Connection;
use super::token::Token;
use crate::api::{ApiError, Principal};
use crate::cache::token_of;
use crate::http1;

/// Most bytes of a request's head: a path, a token and a handful of headers need hundreds.
const HEAD_MAX_BYTES: usize = 32 * 1024;

/// Who may ask over a connection.
#[derive(Clone)]
pub enum Gate {
    /// The kernel said who it is.
    Known(Principal),
    /// Whoever says the token with each request.
    Token(Token),
}

/// Serves a connection until its end; after `shutdown` no further request is taken.
pub async fn serve<S>(
    stream: S,
    gate: Gate,
    router: Router,
    connection: Connection,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = move |request: Request<Incoming>| {
        let (gate, mut router, connection) = (gate.clone(), router.clone(), connection.clone());
        async move { answer(request, &gate, &mut router, connection).await }
    };
    http1::serve(http1::builder().max_buf_size(HEAD_MAX_BYTES), stream, answer, shutdown).await;
}

async fn answer(
    request: Request<Incoming>,
    gate: &Gate,
    router: &mut Router,
    connection: Connection,
) -> Response {
    let principal = match gate {
        Gate::Known(principal) => Some(principal.clone()),
        Gate::Token(token) if token_of(request.headers()).is_some_and(|said| token.is(&said)) => {
            Some(Principal::Token)
        }
        // The cache has tokens of its own, and looks at them itself.
        Gate::Token(_) if is_for_cache(request.uri().path()) => None,
        Gate::Token(_) => {
            return ApiError::new(ProblemKind::Unauthorized, "the server's token is missing or wrong")
                .hint("set CALVE_TOKEN to the content of the token file that `calve server --listen` named")
                .into_response();
        }
    };
    let mut request = request.map(Body::new);
    if let Some(principal) = principal {
        request.extensions_mut().insert(principal);
    }
    request.extensions_mut().insert(connection);
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn is_for_cache(path: &str) -> bool {
    path.strip_prefix(CACHE_PREFIX).is_some_and(|rest| rest.starts_with('/'))
}
