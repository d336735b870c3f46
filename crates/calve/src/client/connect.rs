//! Where the server is, and how to reach it.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use calve_server::dirs::Dirs;
use calve_store::HttpRemote;
use calve_store::http::AddressError;
use calve_wire::api::CACHE_PREFIX;
use hyper::http::request;
use hyper::{Request, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::failure::{Failure, Outcome};

/// Longest path of a Unix socket in bytes (`sun_path` without its final zero, unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// How long a server far away may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Tries while a Unix socket's queue of connections is full (many clients at once), with [`QUEUE_PAUSE`] between them.
const QUEUE_TRIES: u32 = 500;
/// Pause between two tries at a full queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// A server.
pub enum Endpoint {
    /// This user's local one, on a Unix socket.
    Local(Dirs),
    /// One that `CALVE_SERVER` names.
    Tcp {
        /// Host name or address, IPv6 in brackets, and port.
        authority: String,
        /// The bearer token of `CALVE_TOKEN`.
        token: Option<String>,
    },
}

impl Endpoint {
    /// The server that the environment names.
    pub fn from_env() -> Outcome<Self> {
        match std::env::var("CALVE_SERVER") {
            Ok(url) if !url.is_empty() => Self::from_url(&url, std::env::var("CALVE_TOKEN").ok()),
            _ => Dirs::from_env().map(Self::Local).map_err(|error| Failure::failed(error.to_string())),
        }
    }

    fn from_url(url: &str, token: Option<String>) -> Outcome<Self> {
        let wrong = || {
            Failure::usage(format!("CALVE_SERVER={url} is no address of a server"))
                .hint("it looks like http://192.0.2.7:7117; unset it to use the local server")
        };
        let authority = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
        let parsed: hyper::http::uri::Authority = authority.parse().map_err(|_| wrong())?;
        if parsed.host().is_empty() || authority.contains('@') {
            return Err(wrong());
        }
        let authority = match parsed.port_u16() {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:80"),
        };
        let token = token.filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| token.bytes().any(|c| !c.is_ascii_graphic())) {
            return Err(Failure::usage("CALVE_TOKEN holds blanks or other characters that no token has"));
        }
        Ok(Self::Tcp { authority, token })
    }

    /// Connects; fails at once where nobody listens.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Local(dirs) => connect_unix(&dirs.socket()).await.map(Stream::Unix),
            Self::Tcp { authority, .. } => {
                let connecting =
                    tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(authority.as_str()));
                let stream = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// A request for `path` with what every request carries.
    pub fn request(&self, path: &str) -> request::Builder {
        let request = Request::builder().uri(path);
        match self {
            Self::Local(_) => request.header(header::HOST, "calve"),
            Self::Tcp { authority, token } => {
                let request = request.header(header::HOST, authority);
                match token {
                    Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
                    None => request,
                }
            }
        }
    }

    /// The server's cache.
    pub fn cache(&self) -> Outcome<HttpRemote> {
        let (address, token) = match self {
            Self::Local(dirs) => (format!("unix:{}:{CACHE_PREFIX}", dirs.socket().display()), None),
            Self::Tcp { authority, token } => (format!("http://{authority}{CACHE_PREFIX}"), token.as_deref()),
        };
        let remote = address.parse().map_err(|error: AddressError| error.to_string());
        let remote =
            remote.and_then(|address| HttpRemote::new(address, token).map_err(|error| error.to_string()));
        remote.map_err(|why| {
            Failure::failed(format!("the cache of the server at {self} cannot be used: {why}"))
        })
    }

    /// That the server cannot be reached.
    pub fn unreachable(&self, error: io::Error) -> Failure {
        let failure = Failure::failed(format!("no calve server can be reached at {self}"));
        let failure = match self {
            Self::Local(_) => failure.hint("`calve server` in another terminal shows what it does"),
            Self::Tcp { .. } => failure.hint("CALVE_SERVER names it; unset it to use the local server"),
        };
        failure.caused_by(error)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(dirs) => write!(f, "{}", dirs.socket().display()),
            Self::Tcp { authority, .. } => write!(f, "http://{authority}"),
        }
    }
}

/// Whether the error says that there is no server at all, as opposed to one that cannot be reached.
pub fn nobody_listens(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    // Reset: it ended while the connection waited to be taken.
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset)
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let mut tries = 0;
    loop {
        let result = if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
            UnixStream::connect(path).await
        } else {
            connect_through_directory(path).await
        };
        match result {
            // A full queue of connections: the server is alive and busy.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < QUEUE_TRIES => {
                tries += 1;
                tokio::time::sleep(QUEUE_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Reaches a socket whose path is too long for `sun_path` through its open directory.
async fn connect_through_directory(path: &Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = std::fs::File::open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

/// A connection to the server.
pub enum Stream {
    /// To the local one.
    Unix(UnixStream),
    /// To one far away.
    Tcp(TcpStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers_are_http_urls() {
        for (url, shown) in
            [("http://h:7/", "http://h:7"), ("http://h", "http://h:80"), ("http://[::1]:7", "http://[::1]:7")]
        {
            assert_eq!(Endpoint::from_url(url, None).unwrap().to_string(), shown);
        }
        for bad in ["h:7", "https://h", "http://", "http://a b", "http://u@h"] {
            assert!(Endpoint::from_url(bad, None).is_err(), "{bad}");
        }
        assert!(Endpoint::from_url("http://h", Some("a b".to_owned())).is_err());
    }

    #[tokio::test]
    async fn a_socket_with_a_long_path_is_reached_through_its_directory() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        // Binding has the same limit, so bind under a short path and move the socket.
        let short = home.path().join("s");
        let listener = tokio::net::UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, deep.join("calve.sock")).unwrap();
        connect_unix(&deep.join("calve.sock")).await.unwrap();
        drop(listener);
        assert!(nobody_listens(&connect_unix(&deep.join("calve.sock")).await.unwrap_err()));
        assert!(nobody_listens(&connect_unix(&home.path().join("none")).await.unwrap_err()));
    }
}
