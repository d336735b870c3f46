//! TCP and TLS to a server whose certificate is known by its fingerprint.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use calve_pin::Fingerprint;
use calve_wire::frame::{Decoder, Token};
use calve_wire::join::{
    KNOCK_EXPORT_BYTES, KNOCK_LABEL, KNOCK_MAGIC, KNOCK_MAX_BYTES, KNOCK_VERSION, Knock, KnockAnswer,
    Refusal, knock_statement,
};
use rustls::pki_types::ServerName;
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

/// Dials the server again and again, and serves each connection. The agent's preamble comes first here: the server must
/// learn from it which machine speaks, and the certificate has told already who the server is.
pub async fn serve(agent: &Rc<Agent>, server: &Server, join: Option<&Join>) -> io::Result<Infallible> {
    let connector = TlsConnector::from(Arc::new(server.fingerprint.trusted()));
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
