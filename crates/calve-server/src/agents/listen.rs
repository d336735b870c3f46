//! Agents that dial in: TCP and TLS, then the machine's preamble, then an ordinary link.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use calve_wire::frame::PREAMBLE_BYTES;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::link::Dialled;
use super::{Agents, Identity};

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
    /// seconds is dropped without an answer.
    pub async fn listen(self: &Arc<Self>, addr: SocketAddr, identity: &Identity) -> io::Result<Listener> {
        let tls = identity.tls().expect("key and certificate were tried when they were loaded");
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        let task = tokio::spawn(accept_all(self.clone(), listener, TlsAcceptor::from(tls)));
        Ok(Listener { local_addr, task })
    }
}

async fn accept_all(agents: Arc<Agents>, listener: TcpListener, tls: TlsAcceptor) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        while handshakes.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((connection, peer)) => {
                let (agents, tls) = (agents.clone(), tls.clone());
                handshakes.spawn(async move {
                    let _permit = permit;
                    let welcome = welcome(&agents, &tls, connection);
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
async fn welcome(agents: &Agents, tls: &TlsAcceptor, connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&connection, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&connection, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&connection, KEEPALIVE)?;
    rustix::net::sockopt::set_tcp_keepcnt(&connection, KEEPALIVE_MISSES)?;
    let mut connection = tls.accept(connection).await?;
    let mut preamble = [0; PREAMBLE_BYTES];
    connection.read_exact(&mut preamble).await?;
    let unknown = || io::Error::new(io::ErrorKind::PermissionDenied, "no expected machine has that token");
    let link = agents.expected(&preamble).ok_or_else(unknown)?;
    link.dialled(Dialled { connection: Box::new(connection), begun: preamble.to_vec() }).await;
    Ok(())
}
