//! A Unix socket that the server connects to.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use calve_wire::frame::Decoder;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::agent::connection::{Preamble, await_preamble, serve as serve_connection};

/// Longest path that fits a socket address with its NUL (unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// Time that a peer has for its preamble: 48 bytes.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Peers that may be at their preamble at once; further ones wait in the listener's queue.
const PREAMBLES_MAX: usize = 16;
/// Pause after a failed accept, which is most likely a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens at `path`, which may be longer than a socket address holds; what a former agent left there is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX_BYTES {
        UnixListener::bind(path)?
    } else {
        let (dir, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        let dir = fs::File::open(dir)?;
        let short: PathBuf = ["/proc/self/fd", &dir.as_raw_fd().to_string()].iter().collect();
        UnixListener::bind(short.join(name))?
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves who connects and knows the token; a newer connection ends the older one.
pub async fn serve(agent: &Rc<Agent>, listener: UnixListener) -> io::Result<Infallible> {
    let (known, mut came) = mpsc::channel(1);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(PREAMBLES_MAX));
    let mut current: Option<JoinHandle<()>> = None;
    loop {
        let accepting = async {
            let permit = permits.clone().acquire_owned().await.expect("it is never closed");
            (listener.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = accepting => match accepted {
                Ok((stream, _)) => {
                    let (known, token) = (known.clone(), agent.token.borrow().clone());
                    tokio::task::spawn_local(async move {
                        if let Some(peer) = prove(stream, Decoder::new(token)).await {
                            let _ = known.send(peer).await;
                        }
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(peer) = came.recv() => {
                if let Some(older) = current.take() {
                    older.abort();
                    let _ = older.await;
                }
                let agent = agent.clone();
                current = Some(tokio::task::spawn_local(async move {
                    let (mut stream, mut decoder) = peer;
                    let (reader, writer) = stream.split();
                    serve_connection(&agent, reader, writer, &mut decoder, Preamble::Unsent).await;
                }));
            }
        }
    }
}

/// Waits for the preamble; who does not know the token is hung up on without a byte.
async fn prove(mut stream: UnixStream, mut decoder: Decoder) -> Option<(UnixStream, Decoder)> {
    let proving = await_preamble(&mut stream, &mut decoder);
    tokio::time::timeout(PREAMBLE_TIMEOUT, proving).await.ok()?.ok()?;
    Some((stream, decoder))
}
