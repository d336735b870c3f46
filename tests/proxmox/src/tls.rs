//! TLS with a certificate that nobody knows, as a node makes it when it is set up.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections whose handshake is done.
pub(crate) struct Listener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

/// Connections that wait for being served.
const BACKLOG: usize = 64;

impl Listener {
    /// Listens; and the fingerprint of its certificate.
    pub async fn bind(address: SocketAddr) -> std::io::Result<(Self, String)> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .map_err(std::io::Error::other)?;
        let pairs: Vec<String> =
            Sha256::digest(made.cert.der()).iter().map(|byte| format!("{byte:02X}")).collect();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(std::io::Error::other)?;
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| {
                    builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)
                })
                .map_err(std::io::Error::other)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (hand_out, ready) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            // Nobody waits for the handshake of another.
            while let Ok((stream, from)) = listener.accept().await {
                let (acceptor, hand_out) = (acceptor.clone(), hand_out.clone());
                if hand_out.is_closed() {
                    return;
                }
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(stream).await {
                        let _ = hand_out.send((tls, from)).await;
                    }
                });
            }
        });
        Ok((Self { address, ready }, pairs.join(":")))
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address)
    }
}
