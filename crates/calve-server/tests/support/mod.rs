//! A whole server in this process, on a real socket, with machines that are played.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod fake_driver;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use calve_node::Driver;
use calve_server::daemon::{self, Config, Ready, ServeError};
use calve_server::dirs::Dirs;
use calve_store::Store;
use fake_driver::FakeDriver;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;

/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Directories, and machines that outlive the server.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub dirs: Dirs,
    pub driver: Arc<FakeDriver>,
    /// A program in the private store.
    pub program: String,
}

/// A serving server.
pub struct Server {
    pub dirs: Dirs,
    pub ready: Ready,
    pub task: JoinHandle<Result<(), ServeError>>,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { data: dir.path().join("data"), run: dir.path().join("run") };
        dirs.create().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, elf()).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = Store::open(&dirs.store()).unwrap().add(&file, None).unwrap().to_string();
        let driver = Arc::new(FakeDriver::new(dirs.run.clone()));
        Self { dir, dirs, driver, program }
    }

    pub fn config(&self) -> Config {
        Config {
            dirs: self.dirs.clone(),
            drivers: {
                let driver = self.driver.clone();
                Arc::new(move |_, _| vec![driver.clone() as Arc<dyn Driver>])
            },
            listen: None,
            token_file: None,
            agents: None,
            idle_exit: None,
            version: "test".to_owned(),
        }
    }

    pub async fn serve(&self) -> Server {
        self.serve_with(self.config()).await.unwrap()
    }

    /// A server, once it serves; an error where it does not come to that.
    pub async fn serve_with(&self, config: Config) -> Result<Server, ServeError> {
        let dirs = config.dirs.clone();
        let (ready, told) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(daemon::serve(config, move |now| drop(ready.send(now.clone()))));
        match told.await {
            Ok(ready) => Ok(Server { dirs, ready, task }),
            Err(_) => Err(task.await.unwrap().expect_err("it has ended before it served")),
        }
    }

    /// The body of a request for a job with this script ([`fake_driver`]).
    pub fn job(&self, script: &[&str]) -> Value {
        json!({
            "spec": {
                "kind": "job", "restart": "never", "network": "none",
                "workload": {"type": "program", "path": self.program, "args": script, "stdin": true},
            },
            "ttl_ms": 600_000, "grace_ms": 1000,
        })
    }
}

/// The least ELF file that is a program (elf(5)): a header without segments.
fn elf() -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    header[16..18].copy_from_slice(&2u16.to_le_bytes());
    header[18..20].copy_from_slice(&machine.to_le_bytes());
    header[20..24].copy_from_slice(&1u32.to_le_bytes());
    header[52..54].copy_from_slice(&64u16.to_le_bytes());
    header
}

impl Server {
    pub fn socket(&self) -> PathBuf {
        self.dirs.socket()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer").unwrap()
    }

    pub async fn ask_raw(&self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path).header("host", "calve");
        let response = self.send(request.body(Full::from(body)).unwrap()).await;
        let status = response.status();
        let body = tokio::time::timeout(DEADLINE, response.into_body().collect()).await.expect("an end");
        (status, body.unwrap().to_bytes())
    }

    pub async fn ask(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let (status, bytes) = self.ask_raw(method, path, body).await;
        let value = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("no JSON: {bytes:?}")),
        };
        (status, value)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask("GET", path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// Makes a machine and gives its name.
    pub async fn create(&self, request: Value) -> String {
        let (status, machine) = self.ask("POST", "/v1/machines", request).await;
        assert_eq!(status, 201, "{machine}");
        machine["name"].as_str().unwrap().to_owned()
    }

    /// Waits until the machine is in this state.
    pub async fn until(&self, name: &str, state: &str) -> Value {
        let wait = async {
            loop {
                let machine = self.get(&format!("/v1/machines/{name}")).await;
                if machine["state"] == state {
                    return machine;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{name} is never {state}"))
    }

    pub async fn websocket(&self, path: &str) -> WebSocketStream<UnixStream> {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(format!("ws://calve{path}"), stream).await.unwrap();
        socket
    }

    /// Ends it, machines going on.
    pub async fn stop(self) {
        let (status, _) = self.ask("POST", "/v1/server/stop", Value::Null).await;
        assert_eq!(status, 202);
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(self) {
        tokio::time::timeout(DEADLINE, self.task).await.expect("it ends").unwrap().unwrap();
    }
}
