//! Closures for machines that have no store of this host: sent over the link to their agents before the workload is started,
//! path by path ([`calve_wire::seed`]).
//!
//! The machine's own link carries them, so its credential reads this closure and nothing else: there is no request in which
//! another path could be named. Hash and size of each archive are those under which the path was registered here, so that bytes
//! that were spoilt since, on this disk or on the way, never get their name in the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use calve_core::MachineId;
use calve_store::archive::write_nar;
use calve_store::{Closure, PathInfo, Store, StoreError};
use calve_wire::agent::{Target, ToAgent};
use calve_wire::frame::Channel;
use calve_wire::seed::{END, Header};
use tokio::sync::{mpsc, oneshot};
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
/// Most bytes of names that a machine may say to have: a closure has at most some ten thousand paths.
const NAMES_MAX_BYTES: usize = 16 << 20;

/// Why a closure did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The link ended, or there is none.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The machine says why.
    #[error("the machine cannot take the closure: {0}")]
    Refused(String),
    /// Its paths are not known here.
    #[error("the closure cannot be read")]
    Store(#[from] StoreError),
    /// Here.
    #[error("the closure cannot be read")]
    Read(#[source] io::Error),
}

/// What is being sent.
#[derive(Default)]
pub(super) struct Seeds(Mutex<BTreeMap<MachineId, AbortOnDropHandle<()>>>);

impl Seeds {
    /// Sends the closure and then `start`, again and again until both arrived or the machine is unlinked. While that is
    /// under way, this changes nothing.
    pub fn begin(
        &self,
        agents: &Arc<Agents>,
        store: &Arc<Store>,
        id: MachineId,
        closure: Closure,
        start: ToAgent,
    ) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.get(&id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (agents, store) = (agents.clone(), store.clone());
        let sending = tokio::spawn(async move {
            while let Err(error) = seed(&agents, &store, id, &closure, &start).await {
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

async fn seed(
    agents: &Agents,
    store: &Arc<Store>,
    id: MachineId,
    closure: &Closure,
    start: &ToAgent,
) -> Result<(), SeedError> {
    bring(agents, store, id, closure, STORE_DIR).await?;
    Ok(agents.send(id, start.clone())?)
}

/// Brings what is not there of a closure into `dir` of a machine, path by path; all is there when this returns.
pub async fn bring(
    agents: &Agents,
    store: &Arc<Store>,
    id: MachineId,
    closure: &Closure,
    dir: &str,
) -> Result<(), SeedError> {
    let (sender, mut receiver) = agents.open(id, Target::Seed { path: dir.to_owned() })?.split();
    let (told, there) = oneshot::channel::<BTreeSet<String>>();
    let (pieces, mut read) = mpsc::channel(PIECES_MAX);
    let (closure, store) = (closure.clone(), store.clone());
    let sending = async {
        // Dropped without a word only where the stream has failed, which the other direction tells.
        let Ok(there) = there.await else { return Ok(()) };
        let reading = tokio::task::spawn_blocking(move || {
            let infos = store.path_infos(&closure)?;
            send(&closure, &infos, |name| !there.contains(name), Pieces::new(pieces))
        });
        while let Some(piece) = read.recv().await {
            sender.send(&piece).await?;
        }
        reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(sender.close_stdin().await?)
    };
    let ended = async {
        let (mut names, mut told) = (Vec::new(), Some(told));
        loop {
            match receiver.recv().await {
                Some(StreamEvent::Data(Channel::Stdout, bytes)) if told.is_some() => {
                    names.extend_from_slice(&bytes);
                    if let Some(there) = whole(&names) {
                        let _ = told.take().expect("it was not told yet").send(there);
                    } else if names.len() > NAMES_MAX_BYTES {
                        return Err(SeedError::Refused("it says to have more than there is".to_owned()));
                    }
                }
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
    Ok(())
}

/// The names that a machine says to have, once it has said them all: an empty line ends them.
fn whole(said: &[u8]) -> Option<BTreeSet<String>> {
    let names = match said {
        b"\n" => "",
        said => std::str::from_utf8(said.strip_suffix(b"\n\n")?).ok()?,
    };
    Some(names.lines().map(str::to_owned).collect())
}

/// Sends those paths whose base names are wanted, and the end.
pub(crate) fn send(
    closure: &Closure,
    infos: &[PathInfo],
    is_wanted: impl Fn(&str) -> bool,
    mut pieces: Pieces,
) -> Result<(), SeedError> {
    for (at, info) in closure.paths.iter().zip(infos) {
        let base_name = at.path.base_name().to_string();
        if !is_wanted(&base_name) {
            continue;
        }
        let header = Header { base_name, nar_hash: info.nar_hash.to_hex(), nar_size: info.nar_size };
        writeln!(pieces, "{header}").map_err(SeedError::Read)?;
        pieces = write_nar(&at.host_path, pieces)?;
    }
    // Only behind everything: half of a closure must not look like all of it.
    writeln!(pieces, "{END}").and_then(|()| pieces.flush()).map_err(SeedError::Read)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_with_the_empty_line() {
        assert_eq!(whole(b""), None);
        assert_eq!(whole(b"a\n"), None);
        assert_eq!(whole(b"\n"), Some(BTreeSet::new()));
        assert_eq!(whole(b"a\nb\n\n"), Some(["a".to_owned(), "b".to_owned()].into()));
    }
}
