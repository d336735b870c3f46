//! An HTTP/1.1 connection from its beginning to its end, with limits on hostile clients: of the server and of a cache that is
//! served by itself.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

/// Time in which the head of a request must have come; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// How long a client may take none of the bytes that are there for it, where it must take them.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);

/// What all connections have in common. The size of the buffer is left to say.
pub fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(HEADERS_MAX);
    builder
}

/// Serves a connection until its end; after `shutdown` no further request is taken. Who asks what `must_take` holds for and
/// then stalls is let go: an archive that is being sent occupies memory, while a follower of logs may pause for a day.
pub async fn serve<S, F, A>(
    builder: &Builder,
    stream: S,
    answer: F,
    must_take: fn(&Request<Incoming>) -> bool,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response>,
{
    let stream = Patient::new(stream);
    let ends = stream.ends.clone();
    let service = service_fn(|request| {
        ends.store(must_take(&request), Ordering::Relaxed);
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// A stream that breaks where the other side takes nothing for too long.
struct Patient<S> {
    stream: S,
    /// Whether its patience ends, as it does for the request that is being answered.
    ends: Arc<AtomicBool>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S) -> Self {
        Self { stream, ends: Arc::default(), stalled: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() || !self.ends.load(Ordering::Relaxed) {
            self.stalled = None;
            return poll;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_STALL_MAX)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Clients that stall, in a time that passes as fast as nothing happens.
#[cfg(test)]
pub(crate) mod tests {
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    /// Routes that answer without end.
    pub(crate) fn endless() -> Router {
        let piece = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[7; 4096]));
        Router::new().fallback(get(move || async move { Body::from_stream(stream::repeat_with(piece)) }))
    }

    /// A client that asked for `path` and takes nothing, and the server's end of its connection.
    pub(crate) async fn stalling(path: &str) -> (DuplexStream, DuplexStream) {
        let (mut client, server) = duplex(16 * 1024);
        let request = format!("GET {path} HTTP/1.1\r\nHost: c\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        (client, server)
    }
}
