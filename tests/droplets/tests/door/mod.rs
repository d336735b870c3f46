//! A server's door for agents, played by a test.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use agent_client::TOKEN;
use calve_core::{MachineId, Timestamp};
use calve_wire::join::{KNOCK_MAGIC, Knock, KnockAnswer, USER_DATA_VERSION, UserData};
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// The server's door for agents: hands connections out as plain sockets.
pub struct Door {
    port: u16,
    fingerprint: String,
    /// The agents that have dialled.
    pub connections: tokio::sync::mpsc::UnboundedReceiver<UnixStream>,
}

impl Door {
    pub async fn open() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let fingerprint = Sha256::digest(made.cert.der()).iter().map(|byte| format!("{byte:02x}")).collect();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (hand_out, connections) = tokio::sync::mpsc::unbounded_channel();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(stream).await else { continue };
                if answer_knock(&mut tls).await.is_err() {
                    continue;
                }
                let (here, there) = UnixStream::pair().unwrap();
                here.set_nonblocking(true).unwrap();
                let mut here = tokio::net::UnixStream::from_std(here).unwrap();
                if hand_out.send(there).is_err() {
                    return;
                }
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut tls, &mut here).await });
            }
        });
        Self { port, fingerprint, connections }
    }

    /// Of a machine that reaches this host by that name.
    pub fn user_data(&self, host: &str, deadline_unix_ms: Option<u64>) -> String {
        let server = format!("{host}:{}", self.port);
        UserData {
            calve: USER_DATA_VERSION,
            name: "run-1".to_owned(),
            machine: Some(MachineId::new(Timestamp(1), 1)),
            server,
            fingerprint: self.fingerprint.clone(),
            join: Some("a join token".to_owned()),
            token: None,
            deadline_unix_ms,
            grace_ms: 0,
        }
        .to_text()
    }
}

/// Takes the agent's word for it: whom a server believes is tested there.
async fn answer_knock(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut magic = [0; KNOCK_MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    assert_eq!(magic, KNOCK_MAGIC);
    let mut json = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut json).await?;
    let knock: Knock = serde_json::from_slice(&json)?;
    assert_eq!(knock.join.as_deref(), Some("a join token"));
    let answer = serde_json::to_vec(&KnockAnswer::Welcome { token: TOKEN.to_owned() })?;
    stream.write_u32(answer.len() as u32).await?;
    stream.write_all(&answer).await?;
    stream.flush().await
}
