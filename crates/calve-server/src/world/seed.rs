//! Closures for machines that have no store of this host: sent over the link to their agents, as one archive, before the
//! workload is started.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use calve_core::MachineId;
use calve_store::Closure;
use calve_wire::agent::{Target, ToAgent};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::agents::{Agents, LinkError, StreamEvent};
use crate::chain;

/// Where the closure goes.
const STORE_DIR: &str = "/nix/store";
/// Pieces of an archive between the disk and the link.
const PIECES_MAX: usize = 16;
/// Bytes of a piece.
const PIECE_BYTES: usize = 64 * 1024;
/// Pause before it is sent again after the link broke.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a closure did not arrive.
#[derive(Debug, thiserror::Error)]
enum SeedError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the machine cannot take the closure: {0}")]
    Refused(String),
    #[error("the closure cannot be read")]
    Read(#[source] io::Error),
}

/// What is being sent.
#[derive(Default)]
pub(super) struct Seeds(Mutex<BTreeMap<MachineId, AbortOnDropHandle<()>>>);

impl Seeds {
    /// Sends the closure and then `start`, again and again until both arrived or the machine is unlinked. While that is
    /// under way, this changes nothing.
    pub fn begin(&self, agents: &Arc<Agents>, id: MachineId, closure: Closure, start: ToAgent) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.get(&id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let agents = agents.clone();
        let sending = tokio::spawn(async move {
            while let Err(error) = seed(&agents, id, &closure, &start).await {
                if matches!(error, SeedError::Link(LinkError::Unknown)) {
                    return;
                }
                tracing::warn!(machine = %id, error = chain(&error), "a closure did not arrive");
                tokio::time::sleep(PAUSE).await;
            }
        });
        begun.insert(id, AbortOnDropHandle::new(sending));
    }

    /// The machine is gone.
    pub fn end(&self, id: MachineId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

async fn seed(agents: &Agents, id: MachineId, closure: &Closure, start: &ToAgent) -> Result<(), SeedError> {
    let (sender, mut receiver) = agents.open(id, Target::Write { path: STORE_DIR.to_owned() })?.split();
    let (pieces, mut read) = mpsc::channel(PIECES_MAX);
    let closure = closure.clone();
    let reading = tokio::task::spawn_blocking(move || archive(&closure, Pieces::new(pieces)));
    let sending = async {
        while let Some(piece) = read.recv().await {
            sender.send(&piece).await?;
        }
        // Closed only behind a whole archive: half of one must not look like all of it.
        match reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(()) => Ok(sender.close_stdin().await?),
            Err(error) => Err(SeedError::Read(error)),
        }
    };
    let ended = async {
        loop {
            match receiver.recv().await {
                Some(StreamEvent::Data(..)) => {}
                Some(StreamEvent::Ended(_)) => return Ok(()),
                Some(StreamEvent::Failed { message, .. }) => return Err(SeedError::Refused(message)),
                None => return Err(SeedError::Link(LinkError::Broken)),
            }
        }
    };
    tokio::pin!(sending, ended);
    tokio::select! {
        sent = &mut sending => match sent {
            // Why the stream was closed, is told by the other direction.
            Ok(()) | Err(SeedError::Link(LinkError::StreamClosed)) => ended.await?,
            Err(error) => return Err(error),
        },
        // Before all was sent only a refusal can end it.
        refused = &mut ended => {
            refused?;
            sending.await?;
        }
    }
    Ok(agents.send(id, start.clone())?)
}

/// Writes the store paths of a closure as an archive.
pub(crate) fn archive(closure: &Closure, pieces: Pieces) -> io::Result<()> {
    let mut archive = tar::Builder::new(pieces);
    archive.follow_symlinks(false);
    for path in &closure.paths {
        let name = path.path.base_name();
        match std::fs::symlink_metadata(&path.host_path)?.is_dir() {
            true => archive.append_dir_all(name, &path.host_path)?,
            false => archive.append_path_with_name(&path.host_path, name)?,
        }
    }
    archive.into_inner()?.flush()
}

/// Hands an archive on in pieces.
pub(crate) struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Pieces {
    pub fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self { pieces, piece: Vec::new() }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
