//! TCP and TLS to a server whose certificate is known by its fingerprint.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use calve_wire::frame::{Decoder, Token};
use calve_wire::join::{
    KNOCK_EXPORT_BYTES, KNOCK_LABEL, KNOCK_MAGIC, KNOCK_MAX_BYTES, KNOCK_VERSION, Knock, KnockAnswer,
    Refusal, knock_statement,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::agent::Agent;
use crate::agent::connection::{Preamble, await_preamble, serve as serve_connection};
use crate::agent::key::AgentKey;

/// First pause before the server is dialled again.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: each one doubles up to here; a server that is back is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Time for the connection, the handshake and the preamble together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause before a server is asked again that has refused the machine: it will not think otherwise soon.
const PAUSE_REFUSED: Duration = Duration::from_secs(60);

/// By what the agent becomes known to the server.
pub struct Join {
    /// The machine's id there.
    pub machine: String,
    /// Good for one key.
    pub token: String,
    /// The agent's own.
    pub key: AgentKey,
}

/// A server that does not take this agent for the machine's.
#[derive(Debug, thiserror::Error)]
#[error("the server refuses this machine: {0}")]
struct Refused(String);

/// A server that the agent dials.
#[derive(Debug, Clone)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// Its certificate.
    pub fingerprint: Fingerprint,
}

/// SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits, with or without colons")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(FingerprintError);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            *byte = match (value(pair[0]), value(pair[1])) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(FingerprintError),
            };
        }
        Ok(Self(bytes))
    }
}

/// Dials the server again and again, and serves each connection. The agent's preamble comes first here: the server must
/// learn from it which machine speaks, and the certificate has told already who the server is.
pub async fn serve(agent: &Rc<Agent>, server: &Server, join: Option<&Join>) -> io::Result<Infallible> {
    let config = client_config(server.fingerprint).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut pause = PAUSE_FIRST;
    loop {
        let connecting = connect(agent, server, &connector, join);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((stream, mut decoder))) => {
                pause = PAUSE_FIRST;
                let (reader, writer) = tokio::io::split(stream);
                serve_connection(agent, reader, writer, &mut decoder, Preamble::Sent).await;
            }
            Ok(Err(error)) if error.is::<Refused>() => {
                // A machine that nobody hears has its console, and a service its journal.
                eprintln!("calve-agent: {error}");
                tokio::time::sleep(PAUSE_REFUSED).await;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(
    agent: &Agent,
    server: &Server,
    connector: &TlsConnector,
    join: Option<&Join>,
) -> anyhow::Result<(Tls, Decoder)> {
    let stream = TcpStream::connect(&server.address).await?;
    stream.set_nodelay(true)?;
    let host = server.address.rsplit_once(':').map_or(server.address.as_str(), |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let mut stream = connector.connect(name, stream).await?;
    if let Some(join) = join {
        *agent.token.borrow_mut() = knock(&mut stream, join).await?;
    }
    let token = agent.token.borrow().clone();
    stream.write_all(&token.preamble()).await?;
    stream.flush().await?;
    let mut decoder = Decoder::new(token);
    await_preamble(&mut stream, &mut decoder).await?;
    Ok((stream, decoder))
}

/// Shows the agent's key and redeems the join token, or has it redeemed already: the same is said every time, so that it does
/// not matter where an agent or a connection ended before.
async fn knock(stream: &mut Tls, join: &Join) -> anyhow::Result<Token> {
    let exported = stream.get_ref().1.export_keying_material([0; KNOCK_EXPORT_BYTES], KNOCK_LABEL, None)?;
    let statement = knock_statement(&exported, &join.machine, Some(&join.token));
    let knock = serde_json::to_vec(&Knock {
        version: KNOCK_VERSION,
        machine: join.machine.clone(),
        key: join.key.public(),
        signature: join.key.sign(&statement),
        join: Some(join.token.clone()),
    })?;
    stream.write_all(&KNOCK_MAGIC).await?;
    stream.write_u32(u32::try_from(knock.len())?).await?;
    stream.write_all(&knock).await?;
    stream.flush().await?;
    let length = stream.read_u32().await?;
    ensure!(length <= KNOCK_MAX_BYTES, "the server's answer is too long");
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    match serde_json::from_slice(&answer)? {
        KnockAnswer::Welcome { token } => token.parse().context("the token of the link"),
        KnockAnswer::Refused { reason: Refusal::Later, message } => anyhow::bail!(message),
        KnockAnswer::Refused { message, .. } => Err(Refused(message).into()),
    }
}

fn client_config(fingerprint: Fingerprint) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { fingerprint, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Trusts one certificate and no authority; the handshake's signature is checked as always.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Sha256::digest(end_entity).as_slice() == self.fingerprint.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let plain = "0a".repeat(32);
        let colons = ["0A"; 32].join(":");
        assert_eq!(plain.parse::<Fingerprint>(), Ok(Fingerprint([10; 32])));
        assert_eq!(colons.parse::<Fingerprint>(), plain.parse());
        assert_eq!("zz".repeat(32).parse::<Fingerprint>(), Err(FingerprintError));
        assert_eq!("0a".parse::<Fingerprint>(), Err(FingerprintError));
    }
}
