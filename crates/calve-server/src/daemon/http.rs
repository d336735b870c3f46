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
    let must_take = |request: &Request<Incoming>| is_for_cache(request.uri().path());
    http1::serve(http1::builder().max_buf_size(HEAD_MAX_BYTES), stream, answer, must_take, shutdown).await;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::connections::Connections;
    use super::*;
    use crate::http1::tests::{endless, stalling};

    /// Serves a client that takes nothing, for a day at most; gives whether it was let go.
    async fn is_let_go(path: &str) -> bool {
        let (_client, server) = stalling(path).await;
        let connection = Connections::default().enter();
        let gate = Gate::Known(Principal::User(0));
        let serving = serve(server, gate, endless(), connection, CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(86_400), serving).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_the_cache_that_takes_nothing_is_let_go_and_a_follower_of_logs_is_not() {
        assert!(is_let_go("/cache/nar/x.nar").await);
        assert!(!is_let_go("/v1/machines/a/logs").await);
    }
}
