//! Dialling out: TCP and TLS to a server that is known by its certificate's fingerprint.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Phase, Remaining, ToAgent};
use calve_wire::join::{KNOCK_MAGIC, Knock, KnockAnswer, USER_DATA_VERSION, UserData};
use calve_wire::machine::Restart;
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest, Sha256};
use support::{Client, TOKEN};
use tokio_rustls::TlsAcceptor;

/// Killed and never ended in order: at its lease's end a service powers its system off.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TLS server that hands its connections out as plain sockets, one after the other.
struct Server {
    address: String,
    fingerprint: String,
    connections: std::sync::mpsc::Receiver<UnixStream>,
}

impl Server {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let fingerprint = Sha256::digest(made.cert.der()).iter().map(|byte| format!("{byte:02x}")).collect();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .expect("they belong together");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (hand_out, connections) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                listener.set_nonblocking(true).expect("a socket");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((stream, _)) = listener.accept().await {
                    let Ok(mut tls) = acceptor.accept(stream).await else { continue };
                    let (here, there) = UnixStream::pair().expect("a pair");
                    here.set_nonblocking(true).expect("a socket");
                    let mut here = tokio::net::UnixStream::from_std(here).expect("a socket");
                    if hand_out.send(there).is_err() {
                        return;
                    }
                    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut tls, &mut here).await });
                }
            });
        });
        Self { address, fingerprint, connections }
    }

    fn accept(&self) -> Client {
        let stream = self.connections.recv_timeout(support::PATIENCE).expect("the agent dials");
        Client::new(stream.into())
    }
}

fn service(server: &Server, fingerprint: &str) -> (Service, tempfile::NamedTempFile) {
    let token_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token_file.path(), format!("{TOKEN}\n")).expect("written");
    let child = Command::new(env!("CARGO_BIN_EXE_calve-agent"))
        .args(["service", "--server", &server.address, "--fingerprint", fingerprint])
        .arg("--token-file")
        .arg(token_file.path())
        .spawn()
        .expect("it was built");
    (Service(child), token_file)
}

fn hello(client: &mut Client) {
    client.preamble();
    // Without an end: see `Service`.
    let remaining = Remaining { until_deadline_ms: None, grace_ms: 0 };
    client.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq: 0, remaining });
    client.until(|client| client.welcome.is_some());
}

#[test]
fn the_agent_dials_introduces_itself_and_dials_again() {
    let server = Server::start();
    let (_service, _token) = service(&server, &server.fingerprint);
    for _ in 0..3 {
        let mut client = server.accept();
        // The agent's preamble comes first: the server learns from it who has dialled.
        client.until(Client::is_connected);
        hello(&mut client);
        assert_eq!(client.exec("head -c 300000 /dev/zero").stdout.len(), 300_000);
    }
}

/// A machine that joins by its user data, without an end: see `Service`.
fn joined(server: &Server, dir: &Path) -> Service {
    let user_data = dir.join("user-data");
    let data = UserData {
        calve: USER_DATA_VERSION,
        name: "run-1".to_owned(),
        machine: Some("01a1fdff29adccab608a2f771e4d6bc8".parse().expect("an id")),
        server: server.address.clone(),
        fingerprint: server.fingerprint.clone(),
        join: Some("a join token".to_owned()),
        token: None,
        deadline_unix_ms: None,
        grace_ms: 0,
    };
    std::fs::write(&user_data, data.to_text()).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_calve-agent"));
    command.arg("service").arg("--user-data").arg(user_data).arg("--key-file").arg(dir.join("key"));
    Service(command.spawn().expect("it was built"))
}

/// What the agent says first.
fn knock(stream: &mut UnixStream) -> Knock {
    stream.set_read_timeout(Some(support::PATIENCE)).expect("a socket");
    let (mut magic, mut length) = ([0; KNOCK_MAGIC.len()], [0; 4]);
    stream.read_exact(&mut magic).expect("a knock");
    assert_eq!(magic, KNOCK_MAGIC);
    stream.read_exact(&mut length).expect("its length");
    let mut json = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut json).expect("the knock");
    serde_json::from_slice(&json).expect("a knock")
}

#[test]
fn an_agent_that_is_killed_before_its_answer_shows_the_same_key_again() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    let agent = joined(&server, dir.path());
    let mut stream = server.connections.recv_timeout(support::PATIENCE).expect("the agent dials");
    let first = knock(&mut stream);
    assert_eq!((first.join.as_deref(), first.key.len()), (Some("a join token"), 64));
    drop((agent, stream));
    let _agent = joined(&server, dir.path());
    let mut stream = server.connections.recv_timeout(support::PATIENCE).expect("the agent dials");
    let second = knock(&mut stream);
    assert_eq!((&second.key, &second.join), (&first.key, &first.join));
    assert_ne!(second.signature, first.signature, "it is over the connection");
    let answer = serde_json::to_vec(&KnockAnswer::Welcome { token: TOKEN.to_owned() }).expect("JSON");
    stream.write_all(&(answer.len() as u32).to_be_bytes()).expect("written");
    stream.write_all(&answer).expect("written");
    let mut client = Client::new(stream.into());
    client.until(Client::is_connected);
    hello(&mut client);
    assert_eq!(client.exec("echo joined").stdout, b"joined\n");
}

#[test]
fn a_server_with_another_certificate_hears_nothing() {
    let server = Server::start();
    let (_service, _token) = service(&server, &"ab".repeat(32));
    let heard = server.connections.recv_timeout(Duration::from_millis(1500));
    // TLS 1.3 lets a server finish before the client has refused it; then the connection ends without a byte.
    if let Ok(stream) = heard {
        let mut client = Client::new(stream.into());
        while client.step(Duration::from_millis(100)) {}
        assert!(!client.is_connected());
    }
}

/// A system restarts its services when it is switched, the agent among them.
#[test]
fn a_service_that_is_told_to_go_leaves_its_system_up() {
    if !e2e::may_mount("a_service_that_is_told_to_go_leaves_its_system_up") {
        return;
    }
    // In place of all programs of this host, so that nobody asks it to power off.
    let programs = tempfile::tempdir().expect("a directory");
    let asked = programs.path().join("asked");
    std::fs::copy("/bin/busybox", programs.path().join("sh")).expect("busybox-static is installed");
    let script = format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display());
    for name in ["systemctl", "poweroff"] {
        let program = programs.path().join(name);
        std::fs::write(&program, &script).expect("written");
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).expect("set");
    }
    let bin = Path::new("/bin").canonicalize().expect("every host has it");
    let mounted = Command::new("mount").arg("--bind").arg(programs.path()).arg(bin).status();
    assert!(mounted.expect("mount runs").success());
    let server = Server::start();
    let (mut service, _token) = service(&server, &server.fingerprint);
    let mut client = server.accept();
    hello(&mut client);
    // The machine's workload is the system itself.
    client.send(&ToAgent::Start { program: None, restart: Restart::Never, health: None });
    client.until_phase(Phase::Running);
    let pid = rustix::process::Pid::from_child(&service.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
    service.0.wait().expect("it ends");
    assert!(!asked.exists(), "it asked for the end of the system: {:?}", std::fs::read_to_string(asked));
}
