//! Agents that dial in over TCP and TLS.

mod fake_agent;

use std::net::SocketAddr;
use std::sync::Arc;

use calve_server::agents::{HANDSHAKES_MAX, Identity, LinkError, Listener};
use calve_wire::agent::ToAgent;
use fake_agent::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Knows the server by its fingerprint, as agents do.
#[derive(Debug)]
struct Pinned(String, Arc<CryptoProvider>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let digits: String = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, self.0);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

async fn listen(world: &World) -> (Listener, String) {
    let identity = Identity::load_or_make(world.dir.path()).unwrap();
    let listener = world.agents.listen("127.0.0.1:0".parse().unwrap(), &identity).await.unwrap();
    (listener, identity.fingerprint())
}

async fn dial(addr: SocketAddr, fingerprint: &str) -> Conversation<TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(fingerprint.to_owned(), provider)))
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("calve-server").unwrap();
    Conversation::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
}

#[tokio::test]
async fn a_dialled_agent_is_known_by_its_token_and_its_newest_connection_counts() {
    let world = World::new();
    let id = machine(1);
    let other = "f".repeat(32);
    world.agents.expect(machine(2), other, Arc::new(remaining)).unwrap();
    world.agents.expect(id, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    let (listener, fingerprint) = listen(&world).await;

    let mut first = dial(listener.local_addr(), &fingerprint).await;
    first.raw(&token().preamble()).await;
    assert_eq!(first.hello().await, 0);
    first.welcome(1).await;
    first.log(1..=1).await;
    first.kept(1).await;
    assert!(world.agents.reports()[&id].linked);
    assert!(!world.agents.reports()[&machine(2)].linked);

    let mut second = dial(listener.local_addr(), &fingerprint).await;
    second.raw(&token().preamble()).await;
    assert_eq!(second.hello().await, 1);
    first.hung_up().await;
    second.welcome(1).await;
    world.until_linked(id).await;
    world.agents.send(id, ToAgent::PowerOff).unwrap();
    assert_eq!(second.message().await, ToAgent::PowerOff);

    // A link outlives the listener, and ends when it is told to.
    drop(listener);
    world.agents.send(id, ToAgent::Signal { signal: 1 }).unwrap();
    assert_eq!(second.message().await, ToAgent::Signal { signal: 1 });
    world.agents.unlink(id);
    second.hung_up().await;
    assert_eq!(world.agents.send(id, ToAgent::PowerOff), Err(LinkError::Unknown));
}

#[tokio::test]
async fn who_shows_no_expected_token_is_dropped_without_an_answer() {
    let world = World::new();
    // Linked over its socket, so not expected to dial.
    let _agent = world.link(machine(1));
    let (listener, fingerprint) = listen(&world).await;
    let mut stranger = dial(listener.local_addr(), &fingerprint).await;
    stranger.raw(&token().preamble()).await;
    let mut rest = Vec::new();
    let _ = stranger.connection.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn silent_strangers_are_dropped_in_the_end_and_do_not_keep_agents_out() {
    let world = World::new();
    let id = machine(1);
    world.agents.expect(id, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    let (listener, fingerprint) = listen(&world).await;
    let mut strangers = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        strangers.push(TcpStream::connect(listener.local_addr()).await.unwrap());
    }
    let mut agent = dial(listener.local_addr(), &fingerprint).await;
    agent.raw(&token().preamble()).await;
    agent.hello().await;
    for mut stranger in strangers {
        assert!(matches!(stranger.read(&mut [0]).await, Ok(0) | Err(_)), "it was dropped");
    }
}
