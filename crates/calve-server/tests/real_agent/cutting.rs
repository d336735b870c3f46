//! A stretch of line between server and agent that is cut at random points.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Bytes from the agent after which a connection is cut, at most; half as many on average.
const CUT_MAX_BYTES: u64 = 3_000_000;

/// Passes connections on and cuts each of them.
pub struct Cutter {
    cuts: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Cutter {
    pub fn listen(path: &Path, agent: PathBuf, seed: u64) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = cuts.clone();
        let task = tokio::spawn(async move {
            let mut random = seed;
            loop {
                let (server, _) = listener.accept().await.unwrap();
                let Ok(agent) = UnixStream::connect(&agent).await else { continue };
                // Xorshift (Marsaglia 2003): enough to choose lengths.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if pass(server, agent, random % CUT_MAX_BYTES).await {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { cuts, task }
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes both ways until so many have come from the agent; false where an end closed before.
async fn pass(mut server: UnixStream, mut agent: UnixStream, cut_after: u64) -> bool {
    let (mut from_server, mut to_server) = server.split();
    let (mut from_agent, mut to_agent) = agent.split();
    let upward = async {
        let mut left = cut_after;
        let mut bytes = vec![0; 10_000];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            match from_agent.read(&mut bytes[..want]).await {
                Ok(count) if count > 0 && to_server.write_all(&bytes[..count]).await.is_ok() => {
                    left -= count as u64;
                }
                _ => return false,
            }
        }
        true
    };
    let downward = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_agent).await;
        false
    };
    tokio::select! {
        cut = upward => cut,
        cut = downward => cut,
    }
}
