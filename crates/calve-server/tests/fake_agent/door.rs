//! The way in for agents that dial, played by a test: TLS with a certificate that is known by its fingerprint, and knocks.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use calve_core::MachineId;
use calve_pin::Fingerprint;
use calve_server::agents::{Identity, Listener};
use calve_server::events::EventLog;
use calve_server::joins::Joins;
use calve_server::reconcile::records::View;
use calve_server::state::State;
use calve_server::state::memory::MemoryState;
use calve_wire::join::{
    KNOCK_EXPORT_BYTES, KNOCK_LABEL, KNOCK_MAGIC, KNOCK_VERSION, Knock, KnockAnswer, knock_statement,
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::World;

/// A server's records, as far as who joins is concerned.
pub struct Records {
    pub state: Arc<dyn State>,
    pub view: View,
    pub events: EventLog,
}

impl Records {
    pub fn new(world: &World) -> Self {
        let events = EventLog::open(&world.dir.path().join("events")).unwrap();
        Self { state: Arc::new(MemoryState::default()), view: View::default(), events }
    }

    pub fn joins(&self) -> Arc<Joins> {
        Arc::new(Joins::new(self.state.clone(), self.view.clone(), self.events.clone()))
    }
}

/// Listens; with the fingerprint.
pub async fn listen(world: &World, joins: Arc<Joins>) -> (Listener, String) {
    let identity = Identity::load_or_make(world.dir.path()).unwrap();
    let listener = world.agents.listen("127.0.0.1:0".parse().unwrap(), &identity, joins).await.unwrap();
    (listener, identity.fingerprint())
}

pub async fn connect(addr: SocketAddr, fingerprint: &str) -> TlsStream<TcpStream> {
    let config = fingerprint.parse::<Fingerprint>().unwrap().trusted();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("calve-server").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// A key of an agent; the same number gives the same key.
pub fn key(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap()
}

pub fn public(key: &Ed25519KeyPair) -> String {
    hex(key.public_key().as_ref())
}

/// A knock that fits this connection.
pub fn knock(
    stream: &TlsStream<TcpStream>,
    key: &Ed25519KeyPair,
    id: MachineId,
    join: Option<&str>,
) -> Knock {
    let exported =
        stream.get_ref().1.export_keying_material([0; KNOCK_EXPORT_BYTES], KNOCK_LABEL, None).unwrap();
    let machine = id.to_string();
    let signature = hex(key.sign(&knock_statement(&exported, &machine, join)).as_ref());
    Knock { version: KNOCK_VERSION, machine, key: public(key), signature, join: join.map(str::to_owned) }
}

pub async fn say(stream: &mut TlsStream<TcpStream>, knock: &Knock) {
    let json = serde_json::to_vec(knock).unwrap();
    stream.write_all(&KNOCK_MAGIC).await.unwrap();
    stream.write_u32(json.len() as u32).await.unwrap();
    stream.write_all(&json).await.unwrap();
    stream.flush().await.unwrap();
}

pub async fn answer(stream: &mut TlsStream<TcpStream>) -> KnockAnswer {
    let mut json = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut json).await.unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
