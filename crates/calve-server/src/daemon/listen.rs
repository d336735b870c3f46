//! Where the server listens: a Unix socket for this user, and an address for whoever has the token.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connections::{Connection, Connections};
use super::http::{self, Gate};
use super::idle::Idle;
use super::token::{Opened, Token};
use super::{Config, Ready, ServeError};
use crate::api::Principal;

/// Most connections at once: each costs a descriptor and some 20 KB; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
/// Longest path of a Unix socket in bytes (`sun_path` without its final zero, unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// Pause after the kernel would not accept, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The open listeners. Dropping them removes the socket.
pub(super) struct Listeners {
    unix: UnixListener,
    socket: Socket,
    tcp: Option<(TcpListener, Opened, PathBuf)>,
}

/// The socket's name in the file system, removed when this is dropped.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listeners {
    /// Listens; only the holder of the data directory's lock may call this, as it takes a socket that is there for a dead
    /// server's.
    pub(super) async fn open(config: &Config) -> Result<Self, ServeError> {
        let tcp = match config.listen {
            None => None,
            Some(addr) => {
                let path = config.token_file.clone().unwrap_or_else(|| config.dirs.data.join("token"));
                let token = Token::open(&path)
                    .map_err(ServeError::io(format!("the token file {}", path.display())))?;
                let listener =
                    TcpListener::bind(addr).await.map_err(ServeError::io(format!("the address {addr}")))?;
                Some((listener, token, path))
            }
        };
        let path = config.dirs.socket();
        let unix = bind(&path).map_err(ServeError::io(format!("the socket {}", path.display())))?;
        Ok(Self { unix, socket: Socket(path), tcp })
    }

    /// Where, for those who want to know.
    pub(super) fn ready(&self) -> Ready {
        let mut listens = vec![self.socket.0.display().to_string()];
        let addr = self.tcp.as_ref().and_then(|(listener, ..)| listener.local_addr().ok());
        listens.extend(addr.map(|addr| format!("http://{addr}")));
        Ready {
            listens,
            token_file: self.tcp.as_ref().map(|(.., path)| path.clone()),
            made_token: self.tcp.as_ref().and_then(|(_, token, _)| token.made.clone()),
            agents: None,
        }
    }

    /// Serves connections until `shutdown`, or until the server has been idle for long enough.
    pub(super) async fn serve(
        mut self,
        router: Router,
        connections: Connections,
        idle: Idle,
        shutdown: &CancellationToken,
    ) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                accepted = accept(&self.unix, self.tcp.as_ref().map(|(listener, ..)| listener)) => accepted,
                () = idle.long_enough() => {
                    // Whoever finds no socket starts a server; whoever found it just before is served.
                    let _ = std::fs::remove_file(&self.socket.0);
                    match accept(&self.unix, None).now_or_never() {
                        None => {
                            tracing::info!("idle for long enough");
                            return;
                        }
                        Some(accepted) => match bind(&self.socket.0) {
                            Ok(unix) => {
                                self.unix = unix;
                                accepted
                            }
                            Err(error) => {
                                tracing::error!(%error, "the socket cannot be made again");
                                return;
                            }
                        },
                    }
                }
            };
            match accepted {
                Ok(accepted) => self.begin(accepted, &router, connections.enter(), permit, shutdown),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn begin(
        &self,
        accepted: Accepted,
        router: &Router,
        connection: Connection,
        permit: OwnedSemaphorePermit,
        shutdown: &CancellationToken,
    ) {
        let (router, shutdown) = (router.clone(), shutdown.clone());
        match accepted {
            Accepted::Unix(stream) => {
                let Ok(peer) = stream.peer_cred() else { return };
                let gate = Gate::Known(Principal::User(peer.uid()));
                tokio::spawn(async move {
                    http::serve(stream, gate, router, connection, shutdown).await;
                    drop(permit);
                });
            }
            Accepted::Tcp(stream) => {
                let Some((_, token, _)) = &self.tcp else { return };
                let gate = Gate::Token(token.token.clone());
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    http::serve(stream, gate, router, connection, shutdown).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn accept(unix: &UnixListener, tcp: Option<&TcpListener>) -> io::Result<Accepted> {
    let tcp = async {
        match tcp {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = unix.accept() => accepted.map(|(stream, _)| Accepted::Unix(stream)),
        accepted = tcp => accepted.map(|(stream, _)| Accepted::Tcp(stream)),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        UnixListener::bind(path)?
    } else {
        bind_through_directory(path)?
    };
    // Its directory keeps others out as well; connecting needs the right to write.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether a server answers at the socket.
pub(super) async fn somebody_listens(path: &Path) -> bool {
    if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return UnixStream::connect(path).await.is_ok();
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let Ok(directory) = File::open(parent) else { return false };
    UnixStream::connect(through(&directory, name)).await.is_ok()
}

fn through(directory: &File, name: &std::ffi::OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// Binds where the path is too long for `sun_path`, through its open directory.
fn bind_through_directory(path: &Path) -> io::Result<UnixListener> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = File::open(parent)?;
    UnixListener::bind(through(&directory, name))
}
