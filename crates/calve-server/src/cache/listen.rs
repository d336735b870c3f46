//! A cache on an address of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower_service::Service;

use crate::{http1, memory};

/// Bytes of a request's head, and of a body that are read at once.
const BUFFER_MAX_BYTES: usize = 64 * 1024;
/// Most connections at once: each may hold some hundred KB while it sends; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// Pause after the kernel would not accept, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long an ending cache waits for requests under way.
const REQUESTS_END_MAX: Duration = Duration::from_secs(10);

/// Serves the router until `shutdown`, then lets requests under way end.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    memory::give_back();
    let _trimming = AbortOnDropHandle::new(tokio::spawn(memory::keep_trimmed()));
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let connection = connection(stream, router.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(REQUESTS_END_MAX, connections.wait()).await.is_err() {
        tracing::info!("some requests were cut off");
    }
}

async fn connection<S>(stream: S, router: Router, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            let answer = router.call(request.map(Body::new)).await;
            answer.unwrap_or_else(|never| match never {})
        }
    };
    http1::serve(http1::builder().max_buf_size(BUFFER_MAX_BYTES), stream, answer, |_| true, shutdown).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::tests::{endless, stalling};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (_client, server) = stalling("/nar/x.nar").await;
        connection(server, endless(), CancellationToken::new()).await;
    }
}
