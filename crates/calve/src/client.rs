//! The client of `/v1`: HTTP/1.1 and WebSockets over the local server's Unix socket, or over TCP where `CALVE_SERVER`
//! says so. A local server that does not answer is started.

mod connect;
mod start;
mod websocket;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use calve_store::HttpRemote;
use calve_wire::api::{Problem, ProblemKind};

use crate::failure::{Failure, Outcome};
use connect::{Endpoint, Stream};
pub use websocket::{Received, Socket, SocketReader, SocketWriter};

/// Most bytes of an answer that is read as a whole: 10,000 machines in full are some 20 MB.
const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;
/// How often a request that may be repeated is sent where the server died before it answered: the next one is started, and
/// may itself be killed.
const TRIES_MAX: u32 = 3;
/// Most bytes that are read at once: the allocator hands out the same memory again for the next, where more would be mapped
/// anew each time, which takes longer than to read it.
const READ_BYTES: usize = 64 * 1024;
/// Most bytes of an error's body.
const PROBLEM_MAX_BYTES: usize = 64 * 1024;

/// What a request's body is: nothing, bytes, or a stream of unknown length.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A client of one server. Each request has its own connection: on a Unix socket that costs microseconds, and streams of
/// hours never stand in each other's way.
#[derive(Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    /// The connection that found the server alive, for the first request.
    first: Arc<Mutex<Option<Stream>>>,
}

impl Client {
    /// A client of the server that `CALVE_SERVER` names, else of this user's local server, started where none answers.
    pub async fn connect() -> Outcome<Self> {
        let endpoint = Endpoint::from_env()?;
        let stream = reach(&endpoint).await?;
        Ok(Self::over(endpoint, stream))
    }

    /// A client of the server if it answers; none is started.
    pub async fn connect_running() -> Outcome<Option<Self>> {
        let endpoint = Endpoint::from_env()?;
        match endpoint.connect().await {
            Ok(stream) => Ok(Some(Self::over(endpoint, stream))),
            Err(error) if connect::nobody_listens(&error) => Ok(None),
            Err(error) => Err(endpoint.unreachable(error)),
        }
    }

    fn over(endpoint: Endpoint, stream: Stream) -> Self {
        Self { endpoint: Arc::new(endpoint), first: Arc::new(Mutex::new(Some(stream))) }
    }

    /// Where the server is, for people.
    pub fn server(&self) -> String {
        self.endpoint.to_string()
    }

    /// The server's cache.
    pub fn cache(&self) -> Outcome<HttpRemote> {
        self.endpoint.cache()
    }

    /// `GET`, the answer's bytes as they came.
    pub async fn get_bytes(&self, path: &str) -> Outcome<Bytes> {
        let answer = self.read(path, None).await?;
        self.collect(answer.into_body()).await
    }

    /// `GET`, the answer parsed.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        self.parse(&self.get_bytes(path).await?)
    }

    /// Whether the server has this machine.
    pub async fn has(&self, name: &calve_core::MachineName) -> bool {
        self.get_bytes(&format!("/v1/machines/{name}")).await.is_ok()
    }

    /// `GET`, the answer's body as a stream. `accept` is the wanted media type.
    pub async fn get_stream(&self, path: &str, accept: &str) -> Outcome<Incoming> {
        Ok(self.read(path, Some((header::ACCEPT, accept))).await?.into_body())
    }

    /// `POST` or `DELETE` with a JSON body; the answer's bytes.
    pub async fn submit(&self, method: Method, path: &str, body: &impl Serialize) -> Outcome<Bytes> {
        let json = serde_json::to_vec(body).expect("requests hold nothing that JSON cannot say");
        let body = Full::from(json).map_err(|never| match never {}).boxed();
        let answer = self.send(method, path, Some((header::CONTENT_TYPE, "application/json")), body).await?;
        self.collect(answer.into_body()).await
    }

    /// `POST` with a JSON body, the answer parsed.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Outcome<T> {
        self.parse(&self.submit(Method::POST, path, body).await?)
    }

    /// [`Self::post`] of what changes nothing when it is asked for again: of the next server where this one dies before it
    /// answers. The answer's bytes.
    pub async fn submit_again(&self, path: &str, body: &impl Serialize) -> Outcome<Bytes> {
        let json = serde_json::to_vec(body).expect("requests hold nothing that JSON cannot say");
        let header = Some((header::CONTENT_TYPE, "application/json"));
        let answer = self.repeat(Method::POST, path, header, json.into()).await?;
        self.collect(answer.into_body()).await
    }

    /// `PUT` of a stream.
    pub async fn put_stream(&self, path: &str, content_type: &str, body: Body) -> Outcome<()> {
        let answer = self.send(Method::PUT, path, Some((header::CONTENT_TYPE, content_type)), body).await?;
        self.collect(answer.into_body()).await.map(drop)
    }

    /// Opens a WebSocket.
    pub async fn websocket(&self, path: &str) -> Outcome<Socket> {
        let stream = self.stream().await?;
        let request = websocket::upgrade_request(path, &self.endpoint);
        let answer = self.exchange(stream, request).await.map_err(|unanswered| self.failure(unanswered))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::failed(format!("the server at {} speaks no WebSocket here", self.server())));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|error| self.broken(error))?;
        Ok(websocket::open(upgraded).await)
    }

    /// `GET`: reading twice changes nothing.
    async fn read(
        &self,
        path: &str,
        header: Option<(header::HeaderName, &str)>,
    ) -> Outcome<Response<Incoming>> {
        self.repeat(Method::GET, path, header, Bytes::new()).await
    }

    /// Sends the request, to the next server where this one dies before it answers.
    async fn repeat(
        &self,
        method: Method,
        path: &str,
        header: Option<(header::HeaderName, &str)>,
        body: Bytes,
    ) -> Outcome<Response<Incoming>> {
        let mut tries = 1;
        loop {
            let body = Full::from(body.clone()).map_err(|never| match never {}).boxed();
            match self.try_send(method.clone(), path, header.clone(), body).await {
                Err(Unanswered::Broken(_)) if tries < TRIES_MAX => {
                    tries += 1;
                    let stream = reach(&self.endpoint).await?;
                    *self.first.lock().expect("nothing panics while it is held") = Some(stream);
                }
                result => return result.map_err(|unanswered| self.failure(unanswered)),
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        header: Option<(header::HeaderName, &str)>,
        body: Body,
    ) -> Outcome<Response<Incoming>> {
        self.try_send(method, path, header, body).await.map_err(|unanswered| self.failure(unanswered))
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        header: Option<(header::HeaderName, &str)>,
        body: Body,
    ) -> Result<Response<Incoming>, Unanswered> {
        let stream = self.stream().await.map_err(Unanswered::Failed)?;
        let mut request = self.endpoint.request(path).method(method);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        self.exchange(stream, request.body(body).expect("paths are escaped where they are made")).await
    }

    async fn stream(&self) -> Outcome<Stream> {
        let first = self.first.lock().expect("nothing panics while it is held").take();
        match first {
            Some(stream) => Ok(stream),
            None => self.endpoint.connect().await.map_err(|error| self.endpoint.unreachable(error)),
        }
    }

    /// Sends one request; an answer that is an error becomes a failure.
    async fn exchange(
        &self,
        stream: Stream,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let shaking = http1::Builder::new().max_buf_size(READ_BYTES).handshake(TokioIo::new(stream));
        let (mut sender, connection) = shaking.await.map_err(Unanswered::Broken)?;
        // The connection ends with its last answer; its errors reach the body that is being read.
        tokio::spawn(connection.with_upgrades());
        let answer = sender.send_request(request).await.map_err(Unanswered::Broken)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), PROBLEM_MAX_BYTES).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Err(Unanswered::Failed(refused(status, &body)))
    }

    fn failure(&self, unanswered: Unanswered) -> Failure {
        match unanswered {
            Unanswered::Broken(error) => self.broken(error),
            Unanswered::Failed(failure) => failure,
        }
    }

    async fn collect(&self, body: Incoming) -> Outcome<Bytes> {
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| self.broke_off(error))
    }

    /// `GET` of an array of objects that is read while it comes, so that client and server work at the same time. `take`
    /// parses the object at the beginning of what came so far and gives its length in bytes.
    pub async fn get_each(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> serde_json::Result<usize>,
    ) -> Outcome<()> {
        let mut body = Limited::new(self.read(path, None).await?.into_body(), ANSWER_MAX_BYTES);
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broke_off(error))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            let mut taken = 0;
            loop {
                taken += rest[taken..].iter().take_while(|byte| b"[, \n".contains(byte)).count();
                if matches!(rest[taken..], [] | [b']', ..]) {
                    break;
                }
                match take(&rest[taken..]) {
                    Ok(length) => taken += length,
                    Err(error) if error.is_eof() => break,
                    Err(error) => return Err(self.not_known(error)),
                }
            }
            rest.drain(..taken);
        }
        if rest.trim_ascii() == b"]" { Ok(()) } else { Err(self.broke_off("its end is missing")) }
    }

    /// An answer, parsed; its texts may lie where they came.
    pub fn parse<'a, T: Deserialize<'a>>(&self, bytes: &'a [u8]) -> Outcome<T> {
        serde_json::from_slice(bytes).map_err(|error| self.not_known(error))
    }

    fn not_known(&self, error: serde_json::Error) -> Failure {
        Failure::failed(format!(
            "the answer of the server at {} is not what calve {} knows",
            self.server(),
            VERSION
        ))
        .hint("client and server may be of different versions: `calve version` shows both")
        .caused_by(error)
    }

    fn broke_off(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
        Failure::failed(format!("the answer of the server at {} broke off", self.server())).caused_by(error)
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
        Failure::failed(format!("the connection to the server at {} broke off", self.server()))
            .caused_by(error)
    }
}

/// Why there is no answer that is good.
enum Unanswered {
    /// The connection broke before one came.
    Broken(hyper::Error),
    /// The server refused, or cannot be reached.
    Failed(Failure),
}

/// A connection to the server; a local one that does not answer is started.
async fn reach(endpoint: &Endpoint) -> Outcome<Stream> {
    match endpoint.connect().await {
        Ok(stream) => Ok(stream),
        Err(error) => match endpoint {
            Endpoint::Local(dirs) if connect::nobody_listens(&error) => start::start(dirs, endpoint).await,
            _ => Err(endpoint.unreachable(error)),
        },
    }
}

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// No body.
pub fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return problem.into();
    }
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        return Failure::failed("the server does not accept this token")
            .hint("set CALVE_TOKEN to a valid one");
    }
    let kind = match status {
        StatusCode::NOT_FOUND => ProblemKind::NotFound,
        StatusCode::BAD_REQUEST => ProblemKind::BadRequest,
        _ => ProblemKind::Internal,
    };
    let text = String::from_utf8_lossy(body);
    let said = text.lines().next().unwrap_or_default().trim();
    Problem::new(
        kind,
        format!("the server answered {status}{}{said}", if said.is_empty() { "" } else { ": " }),
    )
    .into()
}

/// Escapes a value for a query (RFC 3986): everything but unreserved characters and `/`.
pub fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A path with a query made of those parts that have a value.
pub fn with_query(path: &str, parts: &[(&str, Option<String>)]) -> String {
    let mut whole = path.to_owned();
    let mut separator = '?';
    for (name, value) in parts {
        if let Some(value) = value {
            whole.push_str(&format!("{separator}{name}={}", escape(value)));
            separator = '&';
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ExitStatus;

    #[test]
    fn queries_are_escaped() {
        let path = with_query(
            "/v1/x",
            &[("a", Some("b c&d/é".to_owned())), ("no", None), ("n", Some("1".to_owned()))],
        );
        assert_eq!(path, "/v1/x?a=b%20c%26d/%C3%A9&n=1");
    }

    #[test]
    fn a_problem_keeps_its_sentence_and_hint_and_others_say_the_status() {
        let problem = Problem::new(ProblemKind::NotFound, "there is no machine x").hint("see `calve ps`");
        let failure = refused(StatusCode::NOT_FOUND, &serde_json::to_vec(&problem).unwrap());
        assert_eq!((failure.status, failure.hint.as_deref()), (ExitStatus::NotFound, Some("see `calve ps`")));
        let failure = refused(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(failure.sentence, "the server answered 502 Bad Gateway: <html>");
        assert!(refused(StatusCode::UNAUTHORIZED, b"").sentence.contains("token"));
    }
}
