//! Closures for machines that have no store of this host: sent over the link to their agents before the workload is started,
//! path by path ([`calve_wire::seed`]).
//!
//! The machine's own link carries them, so its credential reads this closure and nothing else: there is no request in which
//! another path could be named. Hash and size of each archive are those under which the path was registered here, so that bytes
//! that were spoilt since, on this disk or on the way, never get their name in the machine. What stands in another path that
//! the machine has is not sent again ([`calve_store::delta`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use calve_core::MachineId;
use calve_store::chunk::CHUNK_MAX;
use calve_store::cut::CHUNK_LEVEL;
use calve_store::delta::{self, Held};
use calve_store::progress::Progress;
use calve_store::{Closure, Store, StoreError};
use calve_wire::agent::{Target, ToAgent};
use calve_wire::api::Bringing;
use calve_wire::frame::Channel;
use calve_wire::seed::{END, HashAt, Header, PART_MAX_BYTES, Part};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use zstd::stream::write::Encoder;

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
pub struct Seeds {
    begun: Mutex<BTreeMap<MachineId, AbortOnDropHandle<()>>>,
    under_way: UnderWay,
}

/// How far the closures are that are on their way.
type UnderWay = Arc<Mutex<BTreeMap<MachineId, Arc<Progress>>>>;

/// A closure that is on its way: dropped, it is no more.
pub struct Watched {
    id: MachineId,
    under_way: UnderWay,
    progress: Arc<Progress>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

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
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.get(&id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (agents, store, watched) = (agents.clone(), store.clone(), self.watch(id));
        let sending = tokio::spawn(async move {
            while let Err(error) = seed(&agents, &store, &watched, &closure, &start).await {
                if matches!(error, SeedError::Link(LinkError::Unknown)) {
                    return;
                }
                tracing::warn!(machine = %id, error = chain(&error), "a closure did not arrive");
                tokio::time::sleep(PAUSE).await;
            }
        });
        begun.insert(id, AbortOnDropHandle::new(sending));
    }

    /// A closure is on its way to a machine from now on.
    pub fn watch(&self, id: MachineId) -> Watched {
        let (under_way, progress) = (self.under_way.clone(), Arc::<Progress>::default());
        under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id, progress.clone());
        Watched { id, under_way, progress }
    }

    /// How far the closure is that is on its way to a machine, where one is and it is known what the machine lacks.
    pub fn bringing(&self, id: MachineId) -> Option<Bringing> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = under_way.get(&id).filter(|progress| progress.paths.get() > 0)?;
        Some(Bringing {
            paths: progress.paths.get(),
            paths_done: progress.paths_done.get(),
            bytes: progress.archive_bytes.get(),
            bytes_done: progress.archive_bytes_done.get(),
            sent_bytes: progress.bytes_moved.get(),
        })
    }

    /// The machine is gone.
    pub fn end(&self, id: MachineId) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

async fn seed(
    agents: &Agents,
    store: &Arc<Store>,
    watched: &Watched,
    closure: &Closure,
    start: &ToAgent,
) -> Result<(), SeedError> {
    bring(agents, store, watched, closure, Closure::default(), STORE_DIR).await?;
    Ok(agents.send(watched.id, start.clone())?)
}

/// Brings what is not there of a closure into `dir` of a machine, path by path; all is there when this returns. Parts may be
/// copied there from paths that it has, and from those of `other`, which the machine has in its own store.
pub async fn bring(
    agents: &Agents,
    store: &Arc<Store>,
    watched: &Watched,
    closure: &Closure,
    other: Closure,
    dir: &str,
) -> Result<(), SeedError> {
    match bring_once(agents, store, watched, closure, Some(other), dir).await {
        // What lies there may not be what it was here.
        Err(SeedError::Refused(why)) if watched.progress.chunks_present.get() > 0 => {
            tracing::info!(machine = %watched.id, why, "paths are sent again, and nothing of them is copied there");
            bring_once(agents, store, watched, closure, None, dir).await
        }
        done => done,
    }
}

/// The same; without `other` nothing is copied.
async fn bring_once(
    agents: &Agents,
    store: &Arc<Store>,
    watched: &Watched,
    closure: &Closure,
    other: Option<Closure>,
    dir: &str,
) -> Result<(), SeedError> {
    let Watched { id, progress, .. } = watched;
    let (sender, mut receiver) = agents.open(*id, Target::Seed { path: dir.to_owned() })?.split();
    let (told, there) = oneshot::channel::<BTreeSet<String>>();
    let (pieces, mut read) = mpsc::channel(PIECES_MAX);
    let closure = closure.clone();
    let sending = async {
        // Dropped without a word only where the stream has failed, which the other direction tells.
        let Ok(there) = there.await else { return Ok(()) };
        let (store, progress) = (store.clone(), progress.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let (there, missing): (Vec<_>, Vec<_>) =
                closure.paths.into_iter().partition(|at| there.contains(at.path.base_name()));
            let held = other.map(|other| held(&store, &Closure::new([there, other.paths].concat())));
            send(&store, &Closure::new(missing), held, Pieces::new(pieces, progress))
        });
        while let Some(piece) = read.recv().await {
            sender.send(&piece).await?;
        }
        reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        tracing::info!(machine = %id, "{}", summary(&watched.progress));
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

/// What of a machine's paths parts may be copied from; nothing where it cannot be read here.
fn held(store: &Store, closure: &Closure) -> Held {
    let mut held = Held::default();
    match store.path_infos(closure) {
        Ok(infos) => {
            let places = closure.paths.iter().map(|at| at.host_path.clone());
            infos.into_iter().zip(places).for_each(|(info, place)| held.add(info, place));
        }
        Err(error) => tracing::debug!(error = chain(&error), "nothing is copied on the machine"),
    }
    held
}

/// What a closure took.
pub(crate) fn summary(progress: &Progress) -> String {
    let Progress { paths, archive_bytes, bytes_moved, .. } = progress;
    format!("{} store paths of {} bytes took {}", paths.get(), archive_bytes.get(), bytes_moved.get())
}

/// Sends the paths of a closure, and the end. Of those that are held there, and of each that was sent, parts are copied; without
/// `held` everything is sent whole.
pub(crate) fn send(
    store: &Store,
    closure: &Closure,
    held: Option<Held>,
    pieces: Pieces,
) -> Result<(), SeedError> {
    let infos = store.path_infos(closure)?;
    let progress = pieces.progress.clone();
    let Progress { paths_done: done, archive_bytes_done: moved, chunks_present: copied, .. } = &*progress;
    // Anew, where it is not the first time.
    [done, moved, copied, &progress.bytes_moved].into_iter().for_each(|counter| counter.set(0));
    progress.archive_bytes.set(infos.iter().map(|info| info.nar_size).sum());
    progress.paths.set(infos.len() as u64);
    let mut frame = Encoder::new(pieces, CHUNK_LEVEL).map_err(SeedError::Read)?;
    let (copies, mut held) = (held.is_some(), held.unwrap_or_default());
    for (at, info) in closure.paths.iter().zip(infos) {
        let base_name = at.path.base_name().to_owned();
        let header = Header { base_name, nar_hash: info.nar_hash.to_hex(), nar_size: info.nar_size };
        writeln!(frame, "{header}").map_err(SeedError::Read)?;
        delta::tell(&info, &at.host_path, &held, |part| {
            moved.add(part.len());
            copied.add(matches!(part, delta::Part::Copy(_)).into());
            write_part(&mut frame, part)
        })?;
        done.add(1);
        if copies {
            held.add(info, at.host_path.clone());
        }
    }
    // Only behind everything: half of a closure must not look like all of it.
    let ended = writeln!(frame, "{END}").and_then(|()| frame.finish()?.flush());
    ended.map_err(SeedError::Read)
}

fn write_part(out: &mut impl Write, part: delta::Part<'_>) -> io::Result<()> {
    const { assert!(CHUNK_MAX <= PART_MAX_BYTES) };
    match part {
        delta::Part::Bytes(bytes) => {
            writeln!(out, "{}", Part::Bytes(bytes.len() as u32))?;
            out.write_all(bytes)
        }
        delta::Part::Copy(copied) => {
            let (from, hashes) = (copied.from.base_name().to_owned(), copied.hashes.len() as u32);
            writeln!(out, "{}", Part::Copy { from, at: copied.at, len: copied.len, hashes })?;
            copied.hashes.iter().try_for_each(|(at, hash)| {
                let hash = String::from_utf8_lossy(hash).into_owned();
                writeln!(out, "{}", HashAt { at: *at as u32, hash })
            })
        }
    }
}

/// Hands on in pieces what is written to it.
pub(crate) struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    progress: Arc<Progress>,
}

impl Pieces {
    pub fn new(pieces: mpsc::Sender<Bytes>, progress: Arc<Progress>) -> Self {
        Self { pieces, piece: Vec::new(), progress }
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
        self.progress.bytes_moved.add(piece.len() as u64);
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

    #[test]
    fn how_far_a_closure_is_can_be_asked_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let tree = dir.path().join("tree");
        std::fs::write(&tree, (0..1 << 20).map(|n: u32| (n.wrapping_mul(n) >> 7) as u8).collect::<Vec<_>>())
            .unwrap();
        let closure = store.closure(&[store.add(&tree, None).unwrap()]).unwrap();
        let (seeds, id) = (Seeds::default(), MachineId::new(crate::world::now(), 1));
        let watched = seeds.watch(id);
        // What the machine lacks is not known yet.
        assert_eq!(seeds.bringing(id), None);
        let (pieces, mut read) = mpsc::channel(1);
        std::thread::scope(|scope| {
            let pieces = Pieces::new(pieces, watched.progress.clone());
            let sending = scope.spawn(|| send(&store, &closure, Some(Held::default()), pieces));
            let mut sent = 0;
            while let Some(piece) = read.blocking_recv() {
                sent += piece.len() as u64;
                let now = seeds.bringing(id).unwrap();
                assert!(now.paths == 1 && now.sent_bytes >= sent && now.bytes_done <= now.bytes, "{now:?}");
            }
            sending.join().unwrap().unwrap();
            let all = seeds.bringing(id).unwrap();
            assert_eq!((all.paths_done, all.bytes_done, all.sent_bytes), (1, all.bytes, sent));
        });
        drop(watched);
        assert_eq!(seeds.bringing(id), None);
    }
}
