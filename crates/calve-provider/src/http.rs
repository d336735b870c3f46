//! JSON over HTTPS, with patience: rates are kept to, and requests made again where that helps and cannot double anything.
//!
//! `reqwest`, because the object store of caches brings it along already: a client of our own on `hyper` would be some 300
//! lines more and nothing less.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::{Credentials, ErrorKind, ProviderError};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Most bytes of one answer: a page of 200 machines has some 800 KB.
const ANSWER_MAX_BYTES: usize = 16 << 20;
/// Most characters of a provider's own words in an error.
const WORDS_MAX_CHARS: usize = 400;

/// How patient to be with a provider.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How often a request is made that may be repeated.
    pub attempts: u32,
    /// Wait before the second time; it doubles each time.
    pub backoff: Duration,
    /// How long one request may take.
    pub answer: Duration,
    /// How long the provider may make us wait for its rate, in all.
    pub rate: Duration,
    /// How long lists may lag: so long a machine is looked for whose creation had no answer before it is asked for again, and so
    /// long what is not listed may exist all the same.
    pub settle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(250),
            answer: Duration::from_secs(30),
            rate: Duration::from_secs(120),
            settle: Duration::from_secs(30),
        }
    }
}

impl Pace {
    /// Looks again and again for what a list may not show yet, until it has settled: what was found, if anything.
    pub(crate) async fn until_settled<T, F>(&self, look: impl Fn() -> F) -> Result<Option<T>, ProviderError>
    where
        F: Future<Output = Result<Option<T>, ProviderError>>,
    {
        let until = Instant::now() + self.settle;
        let mut pause = self.backoff;
        loop {
            if let Some(found) = look().await? {
                return Ok(Some(found));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause *= 2;
        }
    }
}

/// Whether a request may be made again after an answer that says neither yes nor no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Made again, it changes nothing more.
    Freely,
    /// Made again, it might do its work twice.
    OnlyIfRefused,
}

/// How a provider's API is spoken to.
pub(crate) struct Access {
    /// The value of the header `Authorization`.
    pub authorization: HeaderValue,
    /// Whom to trust, where that is not this system's authorities.
    pub tls: Option<rustls::ClientConfig>,
    /// How long a connection is kept that nothing is asked on, where the provider hangs up early.
    pub idle: Option<Duration>,
    /// What a refusal means beyond what its status says: the provider's own reading of status and words.
    pub kind: fn(StatusCode, &str) -> Option<ErrorKind>,
}

/// What is sent.
#[derive(Clone)]
pub(crate) enum Body {
    /// JSON.
    Json(String),
    /// Fields of a form, encoded.
    Form(String),
    /// Fields and a file, with what separates them.
    Parts { boundary: String, bytes: Vec<u8> },
}

impl Body {
    fn content_type(&self) -> String {
        match self {
            Self::Json(_) => "application/json".to_owned(),
            Self::Form(_) => "application/x-www-form-urlencoded".to_owned(),
            Self::Parts { boundary, .. } => format!("multipart/form-data; boundary={boundary}"),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Json(text) | Self::Form(text) => text.clone().into_bytes(),
            Self::Parts { bytes, .. } => bytes.clone(),
        }
    }
}

/// A client of one provider's API.
pub(crate) struct Api {
    provider: &'static str,
    base: Url,
    client: reqwest::Client,
    pace: Pace,
    kind: fn(StatusCode, &str) -> Option<ErrorKind>,
    /// Nothing is sent before this moment: the provider said so.
    not_before: Mutex<Option<Instant>>,
}

/// An answer.
pub(crate) struct Answer<T> {
    /// What it says.
    pub body: T,
    /// The provider's clock, in seconds since the epoch.
    pub unix_s: Option<u64>,
}

/// Why a base address is none.
fn base_url(provider: &'static str, text: &str) -> Result<Url, ProviderError> {
    let wrong = |why: &str| {
        Err(ProviderError::new(
            provider,
            ErrorKind::Refused,
            format!("the address {text:?} of its API {why}"),
        ))
    };
    let Ok(mut url) = text.parse::<Url>() else { return wrong("is no URL") };
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.scheme() {
        "https" => {}
        "http" if local => {}
        "http" => return wrong("would send the token in the clear; only https goes to other hosts"),
        _ => return wrong("is neither https nor http"),
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

impl Api {
    pub fn new(
        provider: &'static str,
        base: &str,
        credentials: &Credentials,
        pace: Pace,
    ) -> Result<Self, ProviderError> {
        let authorization = credentials.authorization("Bearer ");
        let access = Access { authorization, tls: None, idle: None, kind: |_, _| None };
        Self::with(provider, base, access, pace)
    }

    pub fn with(
        provider: &'static str,
        base: &str,
        access: Access,
        pace: Pace,
    ) -> Result<Self, ProviderError> {
        let base = base_url(provider, base)?;
        // Fails where there is one already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Access { authorization, tls, idle, kind } = access;
        let headers = HeaderMap::from_iter([(AUTHORIZATION, authorization)]);
        let mut builder = reqwest::Client::builder();
        if let Some(tls) = tls {
            builder = builder.tls_backend_preconfigured(tls);
        }
        if let Some(idle) = idle {
            builder = builder.pool_idle_timeout(idle);
        }
        let client = builder
            .user_agent(concat!("calve/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_MAX)
            .timeout(pace.answer)
            // The token goes to nobody else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ProviderError::new(provider, ErrorKind::Unreachable, chain(&error)))?;
        Ok(Self { provider, base, client, pace, kind, not_before: Mutex::default() })
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Asks until there is an answer, or patience ends.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        repeat: Repeat,
    ) -> Result<Answer<T>, ProviderError> {
        let body = body.map(|value| Body::Json(value.to_string()));
        self.send(method, path, body.as_ref(), repeat).await
    }

    /// [`Api::ask`] with any body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Body>,
        repeat: Repeat,
    ) -> Result<Answer<T>, ProviderError> {
        let (mut backoff, mut attempt) = (self.pace.backoff, 1);
        let mut rate_left = self.pace.rate;
        loop {
            self.wait_for_rate(&mut rate_left).await?;
            let error = match self.send_once(method.clone(), path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = match error.kind {
                ErrorKind::RateLimited(wait) if wait <= rate_left => {
                    self.hold_until(Instant::now() + wait);
                    continue;
                }
                ErrorKind::Unreachable => true,
                ErrorKind::NoAnswer | ErrorKind::Failed => repeat == Repeat::Freely,
                _ => false,
            };
            if !again || attempt == self.pace.attempts {
                return Err(error);
            }
            tokio::time::sleep(backoff).await;
            (backoff, attempt) = (backoff * 2, attempt + 1);
        }
    }

    async fn wait_for_rate(&self, left: &mut Duration) -> Result<(), ProviderError> {
        loop {
            let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            if wait.is_zero() {
                return Ok(());
            }
            if wait > *left {
                return Err(self.too_many(wait, None));
            }
            *left -= wait;
            tokio::time::sleep(wait).await;
        }
    }

    fn hold_until(&self, moment: Instant) {
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *not_before = Some(not_before.map_or(moment, |until| until.max(moment)));
    }

    fn too_many(&self, wait: Duration, request: Option<String>) -> ProviderError {
        let seconds = wait.as_secs_f32().ceil();
        let message = format!("it had too many requests and takes the next in {seconds} s");
        ProviderError { provider: self.provider, kind: ErrorKind::RateLimited(wait), message, request }
    }

    async fn send_once<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Body>,
    ) -> Result<Answer<T>, ProviderError> {
        let url = self.base.join(path).expect("paths are our own");
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, body.content_type()).body(body.bytes());
        }
        let mut response = request.send().await.map_err(|error| self.broken(error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
        let reason = reason.map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned());
        let request_id = text(&headers, "x-request-id");
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(error))? {
            if bytes.len() + chunk.len() > ANSWER_MAX_BYTES {
                let message = format!("its answer has more than {ANSWER_MAX_BYTES} bytes");
                return Err(self.error(ErrorKind::Failed, message, request_id));
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(self.refusal(status, reason, &headers, &bytes, request_id));
        }
        // Deletions answer nothing.
        let json = if bytes.is_empty() { b"null".as_slice() } else { &bytes };
        let body = serde_json::from_slice(json).map_err(|error| {
            let message = format!("its answer to {path} is not what its documentation says: {error}");
            self.error(ErrorKind::Failed, message, request_id)
        })?;
        Ok(Answer { body, unix_s: unix_s(&headers) })
    }

    fn broken(&self, error: reqwest::Error) -> ProviderError {
        let kind = if error.is_connect() { ErrorKind::Unreachable } else { ErrorKind::NoAnswer };
        let message = match (kind, error.is_timeout()) {
            (ErrorKind::NoAnswer, true) => format!("no answer within {} s", self.pace.answer.as_secs_f32()),
            (ErrorKind::NoAnswer, false) => format!("the answer broke off: {}", chain(&error.without_url())),
            _ => {
                let host = self.base.host_str().unwrap_or_default().to_owned();
                format!("{host} cannot be reached: {}", chain(&error.without_url()))
            }
        };
        self.error(kind, message, None)
    }

    fn refusal(
        &self,
        status: StatusCode,
        reason: Option<String>,
        headers: &HeaderMap,
        bytes: &[u8],
        request_id: Option<String>,
    ) -> ProviderError {
        let said: Problem = serde_json::from_slice(bytes).unwrap_or_default();
        let request_id = request_id.or_else(|| said.request_id.clone());
        let said = said.words(reason);
        let mut words: String = said.chars().filter(|c| !c.is_control()).take(WORDS_MAX_CHARS).collect();
        if words.is_empty() {
            words = format!("it answers {status}");
        }
        let own = (self.kind)(status, &words);
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => return self.too_many(self.wait_said(headers), request_id),
            _ if let Some(kind) = own => kind,
            StatusCode::UNAUTHORIZED => ErrorKind::Credentials,
            StatusCode::FORBIDDEN => ErrorKind::Denied,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            _ if status.is_server_error() => ErrorKind::Failed,
            _ if words.contains("limit") && words.contains("exceed") => ErrorKind::Quota,
            _ => ErrorKind::Refused,
        };
        self.error(kind, words, request_id)
    }

    /// How long a provider that refused for its rate wants to be left alone.
    fn wait_said(&self, headers: &HeaderMap) -> Duration {
        let number = |name| text(headers, name).and_then(|text| text.trim().parse::<u64>().ok());
        let reset = || Some(number("ratelimit-reset")?.saturating_sub(unix_s(headers)?));
        let seconds = number(RETRY_AFTER.as_str()).or_else(reset);
        seconds.map_or(self.pace.backoff, Duration::from_secs).max(self.pace.backoff)
    }

    pub fn error(&self, kind: ErrorKind, message: String, request: Option<String>) -> ProviderError {
        ProviderError { provider: self.provider, kind, message, request }
    }
}

/// How providers say what is wrong: DigitalOcean by `message`; Proxmox VE by that, by the phrase of its status line, and by
/// what is wrong with each parameter.
#[derive(Default, serde::Deserialize)]
struct Problem {
    #[serde(default)]
    message: String,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    errors: std::collections::BTreeMap<String, serde_json::Value>,
}

impl Problem {
    fn words(&self, reason: Option<String>) -> String {
        let mut words = match self.message.trim() {
            "" => reason.unwrap_or_default().trim().to_owned(),
            message => message.to_owned(),
        };
        for (parameter, problem) in &self.errors {
            let problem = problem.as_str().map_or_else(|| problem.to_string(), |text| text.trim().to_owned());
            words.push_str(&format!(" {parameter}: {problem}"));
        }
        words
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned)
}

fn unix_s(headers: &HeaderMap) -> Option<u64> {
    let date = jiff::fmt::rfc2822::parse(&text(headers, DATE.as_str())?).ok()?;
    u64::try_from(date.timestamp().as_second()).ok()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_stays_on_this_host() {
        for good in ["https://api.example", "http://127.0.0.1:7", "http://[::1]:7/x", "http://localhost"] {
            assert!(base_url("p", good).unwrap().path().ends_with('/'), "{good}");
        }
        for (bad, why) in [("http://10.0.0.1", "in the clear"), ("ftp://x", "neither"), ("x", "no URL")] {
            let error = base_url("p", bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
