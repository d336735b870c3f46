//! The server's door for agents, with the real agent: a machine elsewhere whose agent dials in.
//!
//! `calve-agent service` powers its host off at the end of its lease: the machines here have leases without an end, and their
//! agents are killed.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_client::agent_program;
use async_trait::async_trait;
use calve_core::{DriverName, MachineId};
use calve_node::{Driver, DriverError, Found, Order};
use calve_server::daemon::Config;
use calve_wire::agent::Remaining;
use calve_wire::doctor::{Check, CheckStatus};
use serde_json::{Value, json};
use support::{DEADLINE, Home, Server};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// Connections that are cut in the middle.
const CUTS: u64 = 4;
/// Bytes from the agent after which the first is cut; each further one lets as many more through.
const CUT_STEP_BYTES: u64 = 30_000;
/// Lines before and behind the change of servers.
const LINES: usize = 10_000;

/// Machines "elsewhere": processes of this host whose agents know nothing but where to dial.
struct Elsewhere {
    dir: PathBuf,
    /// Address and fingerprint.
    server: Mutex<Option<(SocketAddr, String)>>,
    machines: Mutex<BTreeMap<MachineId, (u32, Agent)>>,
}

/// Killed when it is dropped.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[async_trait]
impl Driver for Elsewhere {
    fn name(&self) -> DriverName {
        DriverName::Sandbox
    }

    async fn preflight(&self) -> Vec<Check> {
        let words = ["sandbox", "elsewhere", "all is well", ""].map(str::to_owned);
        let [area, name, found, cost] = words;
        vec![Check { area, name, status: CheckStatus::Ok, found, cost, mend: None }]
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        let mut machines = self.machines.lock().unwrap();
        if machines.get(&order.id).is_none_or(|(attempt, _)| *attempt != order.attempt) {
            assert_eq!(order.remaining.until_deadline_ms, None, "its end would be this host's");
            let (addr, fingerprint) = self.server.lock().unwrap().clone().expect("the server listens");
            let token_file = self.dir.join(format!("{}.token", order.id));
            std::fs::write(&token_file, &order.token).unwrap();
            let mut command = Command::new(agent_program());
            command.args(["service", "--server", &addr.to_string(), "--fingerprint", &fingerprint]);
            command.arg("--token-file").arg(token_file).stdin(Stdio::null()).stdout(Stdio::null());
            machines.insert(order.id, (order.attempt, Agent(command.spawn().unwrap())));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let machines = self.machines.lock().unwrap();
        Ok(machines.iter().map(|(id, (attempt, _))| Found { id: *id, attempt: *attempt }).collect())
    }

    async fn set_lease(&self, _: MachineId, _: Remaining) -> Result<(), DriverError> {
        Ok(())
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        drop(self.machines.lock().unwrap().remove(&id));
        Ok(())
    }

    fn agent_socket(&self, _: MachineId) -> PathBuf {
        panic!("nobody asks for the socket of an agent that dials")
    }

    fn agents_dial(&self) -> bool {
        true
    }

    fn console_log(&self, _: MachineId) -> Option<PathBuf> {
        None
    }
}

/// The line between agents and the server, of which the first connections are cut.
struct Line {
    addr: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
    cuts: Arc<AtomicU64>,
}

impl Line {
    async fn lay() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (to, cuts) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU64::new(0)));
        let line = Self { addr, to: to.clone(), cuts: cuts.clone() };
        tokio::spawn(async move {
            for number in 1.. {
                let (agent, _) = listener.accept().await.unwrap();
                let to = *to.lock().unwrap();
                let Some(to) = to else { continue };
                let Ok(server) = TcpStream::connect(to).await else { continue };
                let limit = if number <= CUTS { number * CUT_STEP_BYTES } else { u64::MAX };
                if pass(agent, server, limit).await == limit {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        line
    }
}

/// Passes bytes until one end closes or so many came from the agent; how many did.
async fn pass(mut agent: TcpStream, mut server: TcpStream, limit: u64) -> u64 {
    let (from_agent, mut to_agent) = agent.split();
    let (mut from_server, mut to_server) = server.split();
    let mut limited = from_agent.take(limit);
    tokio::select! {
        _ = tokio::io::copy(&mut limited, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_agent) => {}
    }
    limit - limited.limit()
}

/// A static busybox in the Nix store: the agent runs what lies there on this host.
fn busybox(home: &Home) -> String {
    let tree = home.dir.path().join("busybox");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
    let added = Command::new("nix-store").arg("--add").arg(&tree).output().expect("nix is installed");
    assert!(added.status.success(), "{added:?}");
    format!("{}/bin/busybox", String::from_utf8(added.stdout).unwrap().trim())
}

async fn serve(home: &Home, driver: &Arc<Elsewhere>, line: &Line) -> Server {
    let drivers = driver.clone();
    let config = Config {
        agents: Some("127.0.0.1:0".parse().unwrap()),
        drivers: Arc::new(move |_, _| vec![drivers.clone() as Arc<dyn Driver>]),
        ..home.config()
    };
    let server = home.serve_with(config).await.unwrap();
    let door = server.ready.agents.clone().expect("it was asked for");
    assert_eq!(
        server.get("/v1/server").await["agents"],
        json!({"listens": door.listens, "fingerprint": door.fingerprint})
    );
    *line.to.lock().unwrap() = Some(door.listens.parse().unwrap());
    *driver.server.lock().unwrap() = Some((line.addr, door.fingerprint));
    server
}

async fn log(server: &Server) -> String {
    let (status, bytes) = server.ask_raw("GET", "/v1/machines/run-1/logs?stream=stdout", Vec::new()).await;
    assert_eq!(status, 200);
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn until_said(server: &Server, text: &str) {
    let said = async {
        while !log(server).await.ends_with(text) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, said).await.unwrap_or_else(|_| panic!("{text:?} is never said"));
}

#[tokio::test]
async fn a_dialled_agents_log_survives_cuts_and_another_server_without_loss_or_doubles() {
    let home = Home::new();
    let line = Line::lay().await;
    let driver = Arc::new(Elsewhere {
        dir: home.dir.path().to_owned(),
        server: Mutex::default(),
        machines: Mutex::default(),
    });
    let first = serve(&home, &driver, &line).await;
    let go = home.dir.path().join("go");
    let count = |from: usize| {
        format!("i={from}; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); done", from + LINES)
    };
    let script =
        format!("{}; while [ ! -e {} ]; do sleep 0.05; done; {}", count(0), go.display(), count(LINES));
    let request = json!({
        "spec": {
            "kind": "job", "restart": "never", "network": "host",
            "workload": {"type": "program", "path": busybox(&home), "args": ["sh", "-c", script]},
        },
        "ttl_ms": null,
    });
    first.create(request).await;
    until_said(&first, &format!("line {}\n", LINES - 1)).await;
    assert!(line.cuts.load(Ordering::Relaxed) > 0, "no connection was cut");
    assert_eq!(first.get("/v1/machines/run-1").await["state"], "running");
    *line.to.lock().unwrap() = None;
    first.stop().await;

    // The next server is another address behind the line, and the same by its fingerprint.
    let second = serve(&home, &driver, &line).await;
    std::fs::write(&go, "").unwrap();
    let ended = second.ask("GET", "/v1/machines/run-1/wait", Value::Null).await.1;
    assert_eq!(ended["exit"]["code"], 0, "{ended}");
    let expected: String = (0..2 * LINES).map(|n| format!("line {n}\n")).collect();
    assert!(log(&second).await == expected, "the log has lost or doubled something");
    assert!(driver.machines.lock().unwrap().is_empty());
    second.stop().await;
}

#[tokio::test]
async fn without_the_door_nobody_listens_for_agents() {
    let home = Home::new();
    let server = home.serve().await;
    assert_eq!(server.get("/v1/server").await["agents"], Value::Null);
    assert!(server.ready.agents.is_none() && !home.dirs.data.join("agents.pem").exists());
    server.stop().await;
}
