//! Requests over several connections, with an eye on caches that stall.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use rustls::ClientConfig;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::address::Address;
use super::connect::{Sender, connect};
use super::pool::Pool;
use super::problem::{Problem, printable};
use crate::chain;
use crate::remote::RemoteError;

/// How long a cache may neither take nor give a byte before it counts as stalled.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Most requests at once; further ones wait. Enough to fill a long line, few enough for any server.
const REQUESTS_MAX: usize = 64;
/// Most bytes of an error's text that are read.
const PROBLEM_MAX_BYTES: usize = 16 * 1024;

/// A client of one HTTP server. Cloning gives another handle of the same connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    shown: String,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    tls: OnceLock<Arc<ClientConfig>>,
    pool: Pool,
    room: Arc<Semaphore>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.inner.shown)
    }
}

impl Client {
    /// A client of the server at `address`; `token` is sent with each request. Connects with the first request. Errors
    /// name a token that no header can hold.
    pub fn new(address: Address, token: Option<&str>) -> Result<Self, RemoteError> {
        let shown = address.to_string();
        let host = HeaderValue::from_str(&address.host_header()).expect("an address is printable");
        let authorization = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                let message = "the token holds characters that no token has".to_owned();
                RemoteError::Denied { cache: shown.clone(), message }
            })?;
            value.set_sensitive(true);
            Ok(value)
        });
        let inner = Inner {
            authorization: authorization.transpose()?,
            host,
            shown,
            address,
            tls: OnceLock::new(),
            pool: Pool::default(),
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// Its address, for people.
    pub fn shown(&self) -> &str {
        &self.inner.shown
    }

    /// `GET`; any status but 200 is an error ([`RemoteError::Missing`] for 404, which names the path).
    pub async fn get(&self, path: &str) -> Result<Answer, RemoteError> {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    /// Sends a request and waits for the answer's head. A request may be sent twice: where a connection that was idle
    /// breaks before anything came back, another one is used.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Vec<Bytes>,
    ) -> Result<Answer, RemoteError> {
        let inner = &self.inner;
        let room = inner.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        while let Some(sender) = inner.pool.take() {
            let request = self.request(&method, path, headers, Sent::new(body.clone()));
            match self.exchange(sender, request).await {
                Ok((sender, response)) => return self.answer(path, sender, response, room).await,
                Err(Broken::Stalled) => return Err(self.stalled()),
                Err(Broken::Closed(_)) => {}
            }
        }
        let request = self.request(&method, path, headers, Sent::new(body));
        self.send_anew(path, request, room).await
    }

    /// Posts what comes through a channel, over a connection of its own, and waits for the answer's head. Whoever gives
    /// nothing for 30 s is given up as a cache is that takes nothing.
    pub async fn post_stream(
        &self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Receiver<Bytes>,
    ) -> Result<Answer, RemoteError> {
        let room = self.inner.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let request = self.request(&Method::POST, path, headers, Sent::stream(body));
        self.send_anew(path, request, room).await
    }

    /// Sends a request over a new connection.
    async fn send_anew(
        &self,
        path: &str,
        request: Request<Sent>,
        room: OwnedSemaphorePermit,
    ) -> Result<Answer, RemoteError> {
        let inner = &self.inner;
        let sender = connect(&inner.address, &inner.tls).await.map_err(|why| self.unreachable(why))?;
        match self.exchange(sender, request).await {
            Ok((sender, response)) => self.answer(path, sender, response, room).await,
            Err(Broken::Stalled) => Err(self.stalled()),
            Err(Broken::Closed(why)) => Err(self.unreachable(why)),
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Sent,
    ) -> Request<Sent> {
        let target = format!("{}{path}", self.inner.address.prefix);
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.parse().unwrap_or_else(|_| "/".parse().expect("a path"));
        let set = request.headers_mut();
        set.insert(HOST, self.inner.host.clone());
        set.insert(USER_AGENT, HeaderValue::from_static(concat!("calve/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.inner.authorization {
            set.insert(AUTHORIZATION, authorization.clone());
        }
        for (name, value) in headers {
            set.insert(name.clone(), value.clone());
        }
        request
    }

    async fn exchange(
        &self,
        mut sender: Sender,
        request: Request<Sent>,
    ) -> Result<(Sender, Response<Incoming>), Broken> {
        let taken = request.body().taken.clone();
        let stalled = async {
            loop {
                let before = taken.load(Ordering::Relaxed);
                tokio::time::sleep(STALL_MAX).await;
                if taken.load(Ordering::Relaxed) == before {
                    return;
                }
            }
        };
        tokio::select! {
            response = sender.send_request(request) => match response {
                Ok(response) => Ok((sender, response)),
                Err(error) => Err(Broken::Closed(chain(&error))),
            },
            () = stalled => Err(Broken::Stalled),
        }
    }

    async fn answer(
        &self,
        path: &str,
        sender: Sender,
        response: Response<Incoming>,
        room: OwnedSemaphorePermit,
    ) -> Result<Answer, RemoteError> {
        let (head, body) = response.into_parts();
        let body = AnswerBody { client: self.clone(), body, used: Some((sender, room)) };
        if head.status.is_success() {
            return Ok(Answer { head, body });
        }
        let text = body.collect_at_most(PROBLEM_MAX_BYTES).await.unwrap_or_default();
        Err(self.refusal(head.status, path, &text))
    }

    fn refusal(&self, status: StatusCode, path: &str, text: &[u8]) -> RemoteError {
        let cache = self.inner.shown.clone();
        if let Some(problem) = Problem::from_json(text) {
            return problem.into_error(cache);
        }
        let mut message = printable(&String::from_utf8_lossy(text));
        if message.is_empty() || message.contains('<') {
            message = format!("it answers {status} to {path}");
        }
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RemoteError::Denied { cache, message },
            StatusCode::NOT_FOUND => RemoteError::Missing { cache, what: path.to_owned() },
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                RemoteError::Unreachable { cache, message }
            }
            _ => RemoteError::Failed { cache, message },
        }
    }

    pub(super) fn unreachable(&self, message: String) -> RemoteError {
        RemoteError::Unreachable { cache: self.inner.shown.clone(), message }
    }

    fn stalled(&self) -> RemoteError {
        self.unreachable(format!("nothing came or went for {} s", STALL_MAX.as_secs()))
    }
}

enum Broken {
    /// The connection ended before an answer came.
    Closed(String),
    /// Nothing happens on it.
    Stalled,
}

/// A successful answer.
pub struct Answer {
    /// Status and headers.
    pub head: hyper::http::response::Parts,
    /// What follows.
    pub body: AnswerBody,
}

/// An answer's body. Read to its end, its connection serves the next request.
pub struct AnswerBody {
    client: Client,
    body: Incoming,
    used: Option<(Sender, OwnedSemaphorePermit)>,
}

impl AnswerBody {
    /// The next bytes; none at the end. A body that is shorter than announced is an error, as is one that stalls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            match tokio::time::timeout(STALL_MAX, self.body.frame()).await {
                Err(_) => return Err(self.client.stalled()),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(error))) => {
                    self.used = None;
                    let why = chain(&error);
                    return Err(self.client.unreachable(format!("the answer broke off: {why}")));
                }
                Ok(None) => {
                    if let Some((sender, _room)) = self.used.take() {
                        self.client.inner.pool.put(sender);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// The whole of it; an error where it has more than `max` bytes.
    pub async fn collect(mut self, max: usize) -> Result<Bytes, RemoteError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if whole.len() + bytes.len() > max {
                let message = format!("its answer has more than {max} bytes");
                return Err(RemoteError::Failed { cache: self.client.inner.shown.clone(), message });
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    async fn collect_at_most(mut self, max: usize) -> Result<Bytes, RemoteError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes[..bytes.len().min(max - whole.len())]);
            if whole.len() == max {
                break;
            }
        }
        Ok(whole.freeze())
    }
}

/// A request's body: parts that are in memory anyway, sent without being copied together; or what comes through a channel.
#[derive(Debug)]
pub struct Sent {
    parts: VecDeque<Bytes>,
    left: u64,
    more: Option<Receiver<Bytes>>,
    taken: Arc<AtomicU64>,
}

impl Sent {
    fn new(parts: Vec<Bytes>) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        let parts = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Self { parts, left, more: None, taken: Arc::default() }
    }

    fn stream(more: Receiver<Bytes>) -> Self {
        Self { parts: VecDeque::new(), left: 0, more: Some(more), taken: Arc::default() }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = match (self.parts.pop_front(), &mut self.more) {
            (Some(part), _) => {
                self.left -= part.len() as u64;
                part
            }
            (None, None) => return Poll::Ready(None),
            (None, Some(more)) => match std::task::ready!(more.poll_recv(context)) {
                Some(part) => part,
                None => return Poll::Ready(None),
            },
        };
        self.taken.fetch_add(part.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.more.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.more.is_some() { SizeHint::default() } else { SizeHint::with_exact(self.left) }
    }
}
