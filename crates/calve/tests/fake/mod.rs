//! A server that does what a test tells it to, on the Unix socket where `calve` looks for one.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use calve_wire::api::StreamControl;
use calve_wire::frame::Channel;
use calve_wire::machine::Exit;
use serde_json::{Value, json};

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a WebSocket does, in order.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends bytes of a channel.
    Send(Channel, Vec<u8>),
    /// Sends a control message.
    Say(StreamControl),
    /// Waits until a request for this path has come.
    AwaitRequest(&'static str),
    /// Waits until standard input has brought this many bytes.
    AwaitStdin(usize),
    /// Waits until standard input was closed.
    AwaitStdinEnd,
    /// Waits until this many control messages have come.
    AwaitControls(usize),
    /// Sends back everything on standard output until standard input is closed.
    Echo,
    /// Breaks the connection off.
    Break,
    /// Waits until the client has gone.
    AwaitClient,
}

/// What came over a WebSocket.
#[derive(Default, Debug, Clone)]
pub struct Heard {
    pub stdin: Vec<u8>,
    pub stdin_ended: bool,
    /// Control messages and, for `exec`, the request before them.
    pub texts: Vec<String>,
    pub gone: bool,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<(String, Vec<u8>)>>,
    answers: Mutex<Vec<(String, StatusCode, Vec<u8>)>>,
    sockets: Mutex<VecDeque<Vec<Step>>>,
    heard: Mutex<Heard>,
}

/// The server, with a home of its own.
pub struct Fake {
    pub home: tempfile::TempDir,
    shared: Arc<Shared>,
    /// The server ends with this.
    _alive: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("run")).unwrap();
        let shared = Arc::new(Shared::default());
        let listener = std::os::unix::net::UnixListener::bind(home.path().join("run/calve.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let (alive, end) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = end => {}
                }
            });
        });
        let fake = Self { home, shared, _alive: alive };
        fake.answer("POST /v1/machines", 201, &machine("run-1", "job"));
        fake.answer("POST /v1/machines/run-1/stop", 200, &machine("run-1", "job"));
        fake
    }

    /// Answers requests whose method and path begin so; longer ones win, and of equal ones the later.
    pub fn answer(&self, request: &str, status: u16, body: &Value) {
        self.answer_bytes(request, status, body.to_string().as_bytes());
    }

    pub fn answer_bytes(&self, request: &str, status: u16, body: &[u8]) {
        let status = StatusCode::from_u16(status).unwrap();
        self.shared.answers.lock().unwrap().push((request.to_owned(), status, body.to_owned()));
    }

    /// What the next WebSocket does.
    pub fn socket(&self, steps: impl Into<Vec<Step>>) {
        self.shared.sockets.lock().unwrap().push_back(steps.into());
    }

    pub fn heard(&self) -> Heard {
        self.shared.heard.lock().unwrap().clone()
    }

    /// Requests so far: method and path, and body.
    pub fn requests(&self) -> Vec<(String, Vec<u8>)> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The JSON body of the first request that begins so.
    pub fn body(&self, request: &str) -> Value {
        let requests = self.requests();
        let found = requests.iter().find(|(line, _)| line.starts_with(request));
        serde_json::from_slice(&found.unwrap_or_else(|| panic!("no {request} in {requests:?}")).1).unwrap()
    }

    /// `calve` with these arguments, as somebody at this server would run it.
    pub fn calve(&self, args: &[&str]) -> Command {
        calve(self.home.path(), args)
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        finish(self.calve(args).stdin(Stdio::null()))
    }
}

/// `calve` with its data under `home`.
pub fn calve(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calve"));
    command.args(args).env("CALVE_HOME", home).env_remove("CALVE_SERVER").env_remove("CALVE_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command that must end by itself.
pub fn finish(command: &mut Command) -> Output {
    let child = command.spawn().unwrap();
    wait_for(child)
}

/// Waits for a child that must end by itself.
pub fn wait_for(child: std::process::Child) -> Output {
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if waiting.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: kill(2) takes plain numbers; the child was not waited for, so its number is still its own.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    output
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits on a condition.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) takes plain numbers; callers hold the child, so its number is its own.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// A machine as the server shows it.
pub fn machine(name: &str, kind: &str) -> Value {
    let workload = match kind {
        "system" => json!({"type": "base"}),
        _ => json!({"type": "program", "path": format!("{STORE_PATH}/bin/x"), "stdin": true}),
    };
    json!({
        "id": "0".repeat(31) + "7", "name": name, "kind": kind, "state": "running", "ready": null,
        "driver": "sandbox", "node": "local", "runs": "x", "created_unix_ms": 1, "deadline_unix_ms": null,
        "exit": null, "ports": [],
        "spec": {"kind": kind, "restart": "never", "network": "none", "workload": workload},
        "stop_reason": null, "attempt": 1, "starts": 1, "linked": true, "messages": [], "state_since_unix_ms": 1,
    })
}

pub const STORE_PATH: &str = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-x";

/// That the program ended with this code.
pub fn exit(code: i32) -> Step {
    exited(json!({"code": code, "cause": "normal"}))
}

/// That the program ended so.
pub fn exited(how: Value) -> Step {
    let exit: Exit = serde_json::from_value(how).unwrap();
    Step::Say(StreamControl::Exit { exit: Some(exit), state: None, message: None })
}

/// A static program of this host, by its path outside of any store.
pub fn static_program() -> PathBuf {
    let busybox = PathBuf::from("/bin/busybox");
    assert!(busybox.exists(), "these tests need the package busybox-static");
    busybox
}

/// Whether a request is the one that is meant, with any query, or one below it.
fn is_for(line: &str, begins: &str) -> bool {
    let Some(rest) = line.strip_prefix(begins) else { return false };
    rest.is_empty() || rest.starts_with('?') || (rest.starts_with('/') && !begins.ends_with("/machines"))
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.ok();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    shared.requests.lock().unwrap().push((line.clone(), body.to_vec()));
    let answer = {
        let answers = shared.answers.lock().unwrap();
        // The longest match, and of equal ones the latest.
        let matching = answers.iter().filter(|(begins, ..)| is_for(&line, begins));
        matching.max_by_key(|(begins, ..)| begins.len()).cloned()
    };
    let steps = upgrade.is_some().then(|| shared.sockets.lock().unwrap().pop_front()).flatten();
    match (upgrade, steps, answer) {
        (Some(upgrade), Some(steps), _) => upgrade.on_upgrade(move |socket| perform(shared, socket, steps)),
        (_, _, Some((_, status, body))) => (status, Body::from(body)).into_response(),
        _ => {
            let problem =
                json!({"type": "not-found", "title": format!("nothing answers {line}"), "status": 404});
            (StatusCode::NOT_FOUND, problem.to_string()).into_response()
        }
    }
}

async fn perform(shared: Arc<Shared>, mut socket: WebSocket, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Send(channel, bytes) => {
                let message = [&[channel as u8][..], &bytes].concat();
                if socket.send(Message::Binary(message.into())).await.is_err() {
                    break;
                }
            }
            Step::Say(control) => {
                let text = serde_json::to_string(&control).unwrap();
                let _ = socket.send(Message::Text(text.into())).await;
            }
            Step::AwaitRequest(line) => {
                let came =
                    || shared.requests.lock().unwrap().iter().any(|(request, _)| request.starts_with(line));
                while !came() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Step::AwaitStdin(length) => {
                hear_until(&shared, &mut socket, |heard| heard.stdin.len() >= length).await
            }
            Step::AwaitStdinEnd => hear_until(&shared, &mut socket, |heard| heard.stdin_ended).await,
            Step::AwaitControls(count) => {
                hear_until(&shared, &mut socket, |heard| heard.texts.len() >= count).await
            }
            Step::AwaitClient => hear_until(&shared, &mut socket, |_| false).await,
            Step::Echo => echo(&mut socket).await,
            Step::Break => return,
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

async fn hear_until(shared: &Shared, socket: &mut WebSocket, enough: impl Fn(&Heard) -> bool) {
    while !enough(&shared.heard.lock().unwrap()) {
        let message = socket.recv().await;
        let mut heard = shared.heard.lock().unwrap();
        match message {
            Some(Ok(Message::Binary(bytes))) if bytes.len() == 1 => heard.stdin_ended = true,
            Some(Ok(Message::Binary(bytes))) => heard.stdin.extend_from_slice(&bytes[1..]),
            Some(Ok(Message::Text(text))) => heard.texts.push(text.to_string()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                heard.gone = true;
                return;
            }
        }
    }
}

async fn echo(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Binary(bytes) = message {
            if bytes.len() == 1 {
                return;
            }
            let mut back = bytes.to_vec();
            back[0] = Channel::Stdout as u8;
            let _ = socket.send(Message::Binary(Bytes::from(back))).await;
        }
    }
}
