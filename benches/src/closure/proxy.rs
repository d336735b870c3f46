//! A line to a server that takes its time, and counts what goes over it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;
/// Reads on their way in one direction of a connection: with [`READ_BYTES`] a window that no round trip here fills.
const READS_MAX: usize = 512;

/// Gone when it is dropped.
pub struct Proxy {
    pub url: String,
    bytes: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of the server on this port of this host. `round_trip` goes by before an answer can be there, and once more
    /// when a connection is made; bandwidth is as it is, and nobody starts slowly as TCP would.
    pub async fn start(port: u16, round_trip: Duration) -> anyhow::Result<Self> {
        Self::with_rate(port, round_trip, None).await
    }

    /// The same with so many bytes a second towards the client, over all connections together.
    pub async fn with_rate(port: u16, round_trip: Duration, rate: Option<u64>) -> anyhow::Result<Self> {
        let rate = rate.map(|rate| Arc::new(Rate { bytes: rate as f64, free: Mutex::new(Instant::now()) }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = bytes.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, port, round_trip, counter.clone(), rate.clone()));
            }
        });
        Ok(Self { url, bytes, accepting })
    }

    /// Bytes that went over it in both directions, from the beginning.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What a line carries in a second.
struct Rate {
    bytes: f64,
    /// When it has carried all that was given to it.
    free: Mutex<Instant>,
}

impl Rate {
    /// When so many more bytes have been carried.
    fn carried(&self, len: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(Instant::now()) + Duration::from_secs_f64(len as f64 / self.bytes);
        *free
    }
}

async fn connection(
    client: TcpStream,
    port: u16,
    round_trip: Duration,
    bytes: Arc<AtomicU64>,
    rate: Option<Arc<Rate>>,
) {
    let made = Instant::now() + round_trip;
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let one_way = round_trip / 2;
    tokio::join!(
        carry(from_client, to_server, one_way, made, bytes.clone(), None),
        carry(from_server, to_client, one_way, made, bytes, rate)
    );
}

/// Carries bytes until their end; each arrives `delay` after it came, and none is sent before `from`.
async fn carry(
    mut input: OwnedReadHalf,
    mut output: OwnedWriteHalf,
    delay: Duration,
    from: Instant,
    bytes: Arc<AtomicU64>,
    rate: Option<Arc<Rate>>,
) {
    let (give, mut take) = mpsc::channel::<(Instant, Bytes)>(READS_MAX);
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            let Ok(1..) = input.read_buf(&mut buffer).await else { return };
            let part = buffer.split().freeze();
            bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
            let carried = rate.as_ref().map_or_else(Instant::now, |rate| rate.carried(part.len()));
            if give.send((carried.max(from) + delay, part)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, part)) = take.recv().await {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            if output.write_all(&part).await.is_err() {
                return;
            }
        }
        let _ = output.shutdown().await;
    };
    tokio::join!(read, write);
}
