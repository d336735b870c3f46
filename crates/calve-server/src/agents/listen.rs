//! Agents that dial in: TCP and TLS, then a knock where the machine joins by its key, then the machine's preamble, then an
//! ordinary link.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use calve_wire::frame::{PREAMBLE_BYTES, PREAMBLE_MAGIC};
use calve_wire::join::{KNOCK_EXPORT_BYTES, KNOCK_LABEL, KNOCK_MAGIC, KNOCK_MAX_BYTES, Knock, KnockAnswer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::link::Dialled;
use super::{AgentKey, Agents, Identity};
use crate::joins::Joins;

/// Connections at once that have not said yet whose they are; further ones wait in the kernel.
pub const HANDSHAKES_MAX: usize = 64;
/// Time for the TLS handshake and the preamble: over a slow line, some round trips.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after the kernel would not accept (most likely for want of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A dialled agent that is silent this long is asked for a sign of life by the kernel, and again so often.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Signs of life that may fail to come before the connection counts as broken.
const KEEPALIVE_MISSES: u32 = 3;

/// Accepts agents until it is dropped; the links that were made live on.
#[derive(Debug)]
pub struct Listener {
    local_addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Listener {
    /// Where it listens, with the port that the kernel chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    /// Listens for agents of machines that are expected ([`Agents::expect`]). Who shows no expected token within ten
    /// seconds is dropped without an answer; who knocks, is answered by `joins`.
    pub async fn listen(
        self: &Arc<Self>,
        addr: SocketAddr,
        identity: &Identity,
        joins: Arc<Joins>,
    ) -> io::Result<Listener> {
        let tls = identity.tls().expect("key and certificate were tried when they were loaded");
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        let door = Arc::new(Door { agents: self.clone(), tls: TlsAcceptor::from(tls), joins });
        let task = tokio::spawn(accept_all(door, listener));
        Ok(Listener { local_addr, task })
    }
}

/// What every connection needs.
struct Door {
    agents: Arc<Agents>,
    tls: TlsAcceptor,
    joins: Arc<Joins>,
}

async fn accept_all(door: Arc<Door>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        while handshakes.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((connection, peer)) => {
                let door = door.clone();
                handshakes.spawn(async move {
                    let _permit = permit;
                    let welcome = welcome(&door, connection, peer);
                    match tokio::time::timeout(HANDSHAKE_DEADLINE, welcome).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "not an agent"),
                        Err(_) => tracing::debug!(%peer, "silent for too long to be an agent"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept agents");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Finds out whose agent it is and hands the connection to that link.
async fn welcome(door: &Door, connection: TcpStream, peer: SocketAddr) -> io::Result<()> {
    connection.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&connection, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&connection, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&connection, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepcnt(&connection, KEEPALIVE_MISSES)?;
    let mut connection = door.tls.accept(connection).await?;
    let mut preamble = [0; PREAMBLE_BYTES];
    let (magic, token) = preamble.split_at_mut(PREAMBLE_MAGIC.len());
    connection.read_exact(magic).await?;
    let mut key = None;
    if *magic == KNOCK_MAGIC {
        key = Some(answer(door, &mut connection, peer).await?);
        connection.read_exact(magic).await?;
    }
    connection.read_exact(token).await?;
    let unknown = || denied("no expected machine has that token and key");
    let link = door.agents.expected(&preamble, key.as_ref()).ok_or_else(unknown)?;
    link.dialled(Dialled { connection: Box::new(connection), begun: preamble.to_vec() }).await;
    Ok(())
}

/// Answers a knock; the key that it proved.
async fn answer(
    door: &Door,
    connection: &mut TlsStream<TcpStream>,
    peer: SocketAddr,
) -> io::Result<AgentKey> {
    let length = connection.read_u32().await?;
    if length > KNOCK_MAX_BYTES {
        return Err(denied("a knock is too long"));
    }
    let mut json = vec![0; length as usize];
    connection.read_exact(&mut json).await?;
    let knock: Knock = serde_json::from_slice(&json)?;
    let exported = connection
        .get_ref()
        .1
        .export_keying_material([0; KNOCK_EXPORT_BYTES], KNOCK_LABEL, None)
        .map_err(io::Error::other)?;
    let answer = door.joins.answer(&knock, &exported, &peer.ip().to_string(), crate::world::now()).await;
    let (said, result) = match answer {
        Ok(member) => {
            door.agents.bind(member.id, member.key);
            (KnockAnswer::Welcome { token: member.token }, Ok(member.key))
        }
        Err(refused) => {
            let error = denied(&refused.message);
            (refused.into(), Err(error))
        }
    };
    let said = serde_json::to_vec(&said)?;
    connection.write_u32(said.len() as u32).await?;
    connection.write_all(&said).await?;
    connection.flush().await?;
    if result.is_err() {
        connection.shutdown().await?;
    }
    result
}

fn denied(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())
}
