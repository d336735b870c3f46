//! The load of hostile clients on `/v1`, over TCP with a token and over the Unix socket, while good clients are measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::wait_until;

/// How long a hostile client waits for a server that says nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between what one hostile client does and does again: many do it at once.
const PAUSE: Duration = Duration::from_millis(20);
/// So often hostile clients have struck before anything is measured.
const STRUCK_MIN: u64 = 50;

/// How clients are hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hostile {
    /// Sends a byte of a request's head now and then.
    Slow,
    /// Sends a body that never ends.
    Huge,
    /// Sends what is no HTTP, and JSON that is none.
    Malformed,
    /// Asks without the token, and with a wrong one.
    Unauthorised,
}

impl Hostile {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Slow, Self::Huge, Self::Malformed, Self::Unauthorised];

    /// Harms as long as it can; counts what it did.
    pub fn act(self, server: SocketAddr, token: &str, over: &Arc<AtomicBool>, done: &AtomicU64) {
        let mut turn = 0_u64;
        while !over.load(Ordering::Relaxed) {
            turn += 1;
            // A server that hangs up on it does right.
            let _ = self.once(server, token, turn, over);
            done.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    fn once(self, server: SocketAddr, token: &str, turn: u64, over: &AtomicBool) -> io::Result<()> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        match self {
            Self::Slow => {
                for byte in
                    "GET /v1/machines HTTP/1.1\r\nHost: x\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x'))
                {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    stream.write_all(&[byte])?;
                    std::thread::sleep(Duration::from_millis(200));
                }
                Ok(())
            }
            Self::Huge => {
                let chunked = turn.is_multiple_of(2);
                let length =
                    if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 99999999999" };
                write!(
                    stream,
                    "POST /v1/machines HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
                     Content-Type: application/json\r\n{length}\r\n\r\n"
                )?;
                let block = [b'['; 64 * 1024];
                for _ in 0..1024 {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    if chunked {
                        write!(stream, "{:x}\r\n", block.len())?;
                    }
                    stream.write_all(&block)?;
                    if chunked {
                        stream.write_all(b"\r\n")?;
                    }
                }
                Ok(())
            }
            Self::Malformed => {
                let deep = "[".repeat(100_000);
                let body = if turn.is_multiple_of(2) { deep.as_str() } else { "{\"name\":" };
                let request = match turn % 4 {
                    0 => "\0\u{1}\u{2}\r\n\r\n".to_owned(),
                    1 => format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)),
                    _ => format!(
                        "POST /v1/machines HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
                         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    ),
                };
                stream.write_all(request.as_bytes())?;
                stream.read(&mut [0; 1024]).map(drop)
            }
            Self::Unauthorised => {
                let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(token.len()));
                let header = if turn.is_multiple_of(2) { "" } else { &wrong };
                let status = ask(&mut stream, "/v1/machines", header)?;
                assert!(status == 401 || status == 403, "a stranger was answered with {status}");
                Ok(())
            }
        }
    }
}

/// Asks for a path on a connection that ends with the answer; gives its status.
fn ask(stream: &mut TcpStream, path: &str, header: &str) -> io::Result<u16> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let status = answer.get(9..12).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::other("no status"))
}

/// Does something while hostile clients are at it, so many of each kind; gives with it how often they struck.
pub fn under_load<T>(server: SocketAddr, token: &str, of_each: usize, work: impl FnOnce() -> T) -> (T, u64) {
    let (over, done) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let worked = std::thread::scope(|scope| {
        for hostile in Hostile::ALL {
            for _ in 0..of_each {
                let (over, done) = (&over, &done);
                scope.spawn(move || hostile.act(server, token, over, done));
            }
        }
        wait_until("hostile clients to be at it", || done.load(Ordering::Relaxed) > STRUCK_MIN);
        let worked = work();
        over.store(true, Ordering::Relaxed);
        worked
    });
    (worked, done.into_inner())
}

/// Good clients: how long each of so many requests took, in order of length.
pub fn measure(server: SocketAddr, token: &str, requests: usize) -> Vec<Duration> {
    let header = format!("Authorization: Bearer {token}\r\n");
    let mut took: Vec<Duration> = (0..requests)
        .map(|_| {
            let began = Instant::now();
            let mut stream = TcpStream::connect(server).expect("the server listens");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            assert_eq!(ask(&mut stream, "/v1/machines", &header).expect("an answer"), 200);
            began.elapsed()
        })
        .collect();
    took.sort();
    took
}
