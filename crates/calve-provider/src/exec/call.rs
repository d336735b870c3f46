//! One call of a plugin: a process, a line, a line.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::NAME;
use super::config::Command;
use super::protocol::{Answer, Refusal, Request, VERSION};
use crate::{ErrorKind, ProviderError};

/// Most bytes of an answer: 10,000 machines with their tags.
const ANSWER_MAX_BYTES: u64 = 16 << 20;
/// Most lines of a plugin's standard error that go to the log, for each call.
const LOGGED_LINES_MAX: usize = 200;
/// Most characters of a plugin's words in an error.
const WORDS_MAX_CHARS: usize = 300;
/// How long a plugin that has answered may take to end.
const END_MAX: Duration = Duration::from_secs(5);
/// What a plugin gets of our environment, besides what begins with its own name: no credentials of other providers.
const VARIABLES: [&str; 11] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "SSH_AUTH_SOCK",
];

/// A plugin.
pub(super) struct Plugin {
    name: String,
    command: Command,
    calls: AtomicU64,
}

impl Plugin {
    pub fn new(name: String, command: Command) -> Self {
        Self { name, command, calls: AtomicU64::new(1) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// It said what cannot be true.
    pub fn lie(&self, why: &str) -> ProviderError {
        self.error(ErrorKind::Failed, format!("gave a wrong answer: {why}"))
    }

    fn error(&self, kind: ErrorKind, what: impl std::fmt::Display) -> ProviderError {
        ProviderError::new(NAME, kind, format!("the plugin {} {what}", self.name))
    }

    /// Has it done something, within this time.
    pub async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        with: &Value,
        longest: Duration,
    ) -> Result<T, ProviderError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { calve: VERSION, id, what, with }).expect("plain data");
        line.push(b'\n');
        let mut child = self.start()?;
        let (mut stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let said = tokio::spawn(log(self.name.clone(), BufReader::new(child.stderr.take().expect("piped"))));
        let talk = async {
            let tell = async {
                // Who does not read says why.
                let _ = stdin.write_all(&line).await;
                drop(stdin);
            };
            let mut answer = Vec::new();
            let mut stdout = BufReader::new(stdout).take(ANSWER_MAX_BYTES);
            let ((), read) = tokio::join!(tell, stdout.read_until(b'\n', &mut answer));
            read.map(|_| answer)
        };
        // Killed where it takes too long, with whatever it holds open.
        let heard = tokio::time::timeout(longest, talk).await;
        let Ok(heard) = heard else {
            let _ = child.start_kill();
            let seconds = longest.as_secs_f32();
            return Err(
                self.error(ErrorKind::NoAnswer, format!("did not answer {what:?} within {seconds} s"))
            );
        };
        let ended = tokio::time::timeout(END_MAX, child.wait()).await;
        if ended.is_err() {
            let _ = child.start_kill();
        }
        let answer =
            heard.map_err(|error| self.error(ErrorKind::Failed, format!("cannot be heard: {error}")))?;
        if answer.is_empty() {
            let status =
                ended.ok().and_then(Result::ok).map_or_else(String::new, |status| format!(" ({status})"));
            let words =
                tokio::time::timeout(END_MAX, said).await.ok().and_then(Result::ok).unwrap_or_default();
            let words = if words.is_empty() { String::new() } else { format!(": {words}") };
            return Err(
                self.error(ErrorKind::Failed, format!("ended without an answer to {what:?}{status}{words}"))
            );
        }
        self.read(what, id, &answer)
    }

    /// Reads the answer to the request with this number.
    pub fn read<T: DeserializeOwned>(&self, what: &str, id: u64, answer: &[u8]) -> Result<T, ProviderError> {
        let shown = || words(&String::from_utf8_lossy(answer));
        if !answer.ends_with(b"\n") && answer.len() as u64 == ANSWER_MAX_BYTES {
            return Err(self.lie(&format!("it has more than {ANSWER_MAX_BYTES} bytes")));
        }
        let said: Answer = serde_json::from_slice(answer)
            .map_err(|error| self.lie(&format!("{error}, in {:?}", shown())))?;
        if said.calve != VERSION {
            let message = format!("speaks version {} of the protocol, and this calve {VERSION}", said.calve);
            return Err(self.error(ErrorKind::Refused, message));
        }
        if said.id != id {
            return Err(self.lie(&format!("it answers the request {}, and {id} was asked", said.id)));
        }
        match (said.ok, said.error) {
            (Some(ok), None) => serde_json::from_value(ok)
                .map_err(|error| self.lie(&format!("{error}, to {what:?}: {:?}", shown()))),
            (None, Some(refusal)) => Err(self.refusal(refusal)),
            _ => Err(self.lie(&format!("it has neither or both of `ok` and `error`: {:?}", shown()))),
        }
    }

    fn refusal(&self, refusal: Refusal) -> ProviderError {
        let kind = match refusal.kind.as_str() {
            "credentials" => ErrorKind::Credentials,
            "denied" => ErrorKind::Denied,
            "not-found" => ErrorKind::NotFound,
            "quota" => ErrorKind::Quota,
            "rate" => ErrorKind::RateLimited(Duration::from_millis(refusal.wait_ms)),
            "unreachable" => ErrorKind::Unreachable,
            "refused" => ErrorKind::Refused,
            // It may have been done.
            _ => ErrorKind::Failed,
        };
        let request = refusal.request.map(|request| words(&request));
        ProviderError { request, ..self.error(kind, format!("says: {}", words(&refusal.message))) }
    }

    fn start(&self) -> Result<tokio::process::Child, ProviderError> {
        let mut command = tokio::process::Command::new(&self.command.program);
        command.args(&self.command.arguments).env_clear().kill_on_drop(true);
        let own = format!("{}_", self.name.to_ascii_uppercase().replace('-', "_"));
        let passed = |name: &str| VARIABLES.contains(&name) || name.starts_with(&own);
        command.envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passed)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|error| {
            self.error(
                ErrorKind::Refused,
                format!("cannot be started: {}: {error}", self.command.program.display()),
            )
        })
    }
}

/// Sends what a plugin says on its standard error to the log; gives the last line.
async fn log(plugin: String, mut stderr: BufReader<tokio::process::ChildStderr>) -> String {
    let (mut last, mut count) = (String::new(), 0);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut stderr).take(4096).read_until(b'\n', &mut line).await {
        let text = words(String::from_utf8_lossy(&line).trim_end());
        line.clear();
        if count < LOGGED_LINES_MAX {
            tracing::info!(plugin, "{text}");
        }
        count += 1;
        if !text.is_empty() {
            last = text;
        }
    }
    last
}

/// What may be shown of it.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX_CHARS).collect()
}
