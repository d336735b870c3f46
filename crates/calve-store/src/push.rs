//! Pushing: a closure from the local store to a cache.
//!
//! ```text
//!  one request         a thread each           in batches          a thread a core   several at once
//! paths ─▶ missing ─▶ archive, normalise, ─▶ missing chunks? ─▶ compress ─▶ upload ─▶ commit, references first
//!                     cut, hash                                               │        with recipes that are missing
//!                                          large archives, chunk by chunk ─▶  └─▶ hashed ahead
//! ```
//! All stages run at once; what lies between them is bounded by [`IN_FLIGHT_KIB`]. A chunk is asked for once and sent at most
//! once. What was uploaded when a push is cut off stays in the cache for its grace, and the next push finds it there.

mod ahead;
mod commit;
mod cut_path;
mod upload;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::sign::SecretKey;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::chunk::ChunkId;
use crate::index::LocalIndex;
use crate::order::references_first;
use crate::processors::processors;
use crate::progress::Progress;
use crate::pull::blocking;
use crate::remote::{ITEMS_MAX, Manifest, Remote};
use crate::retry::retried;
use crate::{PathInfo, Store, TransferError};

use ahead::{Ahead, Aheads};
use commit::Commits;
use cut_path::{CutPath, Found, Onward, cut_path};

/// Plain bytes of chunks between being cut and being uploaded, in KiB: 300 MB/s at 100 ms of round-trip time. With what the
/// threads hold themselves, and a cache in the same process, a push stays below 256 MiB; with less, it waits for the flushes of a
/// cache on the same host.
pub const IN_FLIGHT_KIB: usize = 48 * 1024;
/// Level of zstd for chunks by default: half the time of level 3 for 5 % more bytes, of texts and of programs.
pub const DEFAULT_LEVEL: i32 = 1;
/// How often it is looked what was cut meanwhile: who waits for chunks themselves is woken for each, thousands of times a second.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long a cache may take to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Paths that are cut at once beyond the cores: one reads while another computes.
const CUTTERS_EXTRA: usize = 1;

/// How to push.
#[derive(Clone)]
pub struct PushOptions {
    /// Signs each path before it is pushed, beside the cache's own signature.
    pub key: Option<Arc<SecretKey>>,
    /// Where recipes of earlier pushes are looked up, and this one's noted.
    pub index: Option<Arc<LocalIndex>>,
    /// Level of zstd for chunks; [`DEFAULT_LEVEL`] by default.
    pub level: i32,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { key: None, index: None, level: DEFAULT_LEVEL }
    }
}

/// What a push shares between its stages.
struct Shared {
    remote: Arc<dyn Remote>,
    progress: Arc<Progress>,
    level: i32,
    /// Room for chunks, in KiB.
    room: Arc<Semaphore>,
    /// The chunks that were come across; true once the cache has them.
    chunks: Mutex<HashMap<ChunkId, bool>>,
    /// Told when the cache has more of them.
    settled: watch::Sender<()>,
    /// Archives that the cache is told of.
    aheads: Aheads,
}

/// Pushes `roots` with everything that they refer to; gives the manifests that the cache made of what it lacked, with all
/// signatures, references first. To give up, drop the future.
pub async fn push(
    store: Arc<Store>,
    roots: &[StorePath],
    remote: Arc<dyn Remote>,
    options: PushOptions,
    progress: Arc<Progress>,
) -> Result<Vec<Manifest>, TransferError> {
    let missing = missing(&store, roots, &*remote, &progress).await?;
    let infos: Vec<PathInfo> = missing.iter().map(|path| path.info.clone()).collect();
    let room = Arc::new(Semaphore::new(IN_FLIGHT_KIB));
    let shared = Arc::new(Shared {
        remote,
        progress,
        level: options.level,
        room: Arc::clone(&room),
        chunks: Mutex::default(),
        settled: watch::Sender::new(()),
        aheads: Aheads::default(),
    });
    // Cutters that wait for room are told however this ends.
    let _close = CloseOnDrop(room);
    let (found_tx, found) = mpsc::unbounded_channel();
    let (cut_tx, cut) = mpsc::unbounded_channel();
    let mut cutters = start_cutters(missing, &shared, &options, &found_tx, &cut_tx);
    drop((found_tx, cut_tx));
    let mut uploading = JoinSet::new();
    uploading.spawn(upload::run(Arc::clone(&shared), found));
    let commits = Commits::new(shared, infos, options);
    let mut committing = std::pin::pin!(commits.run(cut));
    // The commits end when all is cut, the uploads when all is uploaded: the first failure ends everything.
    let mut committed = None;
    loop {
        tokio::select! {
            Some(done) = uploading.join_next() => joined(done)?,
            Some(done) = cutters.join_next() => joined(done)?,
            result = &mut committing, if committed.is_none() => committed = Some(result?),
            else => break,
        }
    }
    Ok(committed.expect("the loop ends with the commits"))
}

fn start_cutters(
    missing: Vec<CutPath>,
    shared: &Arc<Shared>,
    options: &PushOptions,
    found: &mpsc::UnboundedSender<Found>,
    cut: &mpsc::UnboundedSender<commit::Cut>,
) -> JoinSet<Result<(), TransferError>> {
    let mut cutters = JoinSet::new();
    let cores = processors();
    let count = missing.len().min(cores + CUTTERS_EXTRA);
    // Few paths do not keep all cores busy, if each is cut and hashed by one thread. One thread more hashes faster than
    // the other cuts, and hands on chunks in their order.
    let threads = (missing.len() < cores).then_some(NonZeroUsize::MIN);
    let queue = Arc::new(Mutex::new(missing.into_iter().enumerate()));
    let runtime = tokio::runtime::Handle::current();
    for _ in 0..count {
        let (queue, shared, index) = (Arc::clone(&queue), Arc::clone(shared), options.index.clone());
        let (found, cut, runtime) = (found.clone(), cut.clone(), runtime.clone());
        cutters.spawn_blocking(move || {
            loop {
                let next = queue.lock().expect("no cutter panics with the queue").next();
                let Some((n, path)) = next else { return Ok(()) };
                let ahead = Ahead::begin(&path.info, &shared, &runtime);
                let on = Onward { shared: &shared, found: &found, ahead: ahead.as_ref(), runtime: &runtime };
                let recipe = cut_path(&path, index.as_deref(), threads, &on)?;
                if cut.send(commit::Cut { n, recipe, ahead }).is_err() {
                    return Err(TransferError::Cancelled);
                }
            }
        });
    }
    cutters
}

/// What of the closure the cache lacks, references first.
async fn missing(
    store: &Arc<Store>,
    roots: &[StorePath],
    remote: &dyn Remote,
    progress: &Progress,
) -> Result<Vec<CutPath>, TransferError> {
    let (opened, wanted) = (Arc::clone(store), roots.to_vec());
    let closure = blocking(move || {
        let closure = opened.closure(&wanted)?;
        let infos = opened.path_infos(&closure)?;
        Ok(closure.paths.into_iter().zip(infos).collect::<Vec<_>>())
    })
    .await?;
    let paths: Vec<_> = closure.iter().map(|(at, _)| at.path.clone()).collect();
    let mut missing = HashSet::new();
    for paths in paths.chunks(ITEMS_MAX) {
        let ask = || remote.missing_paths(paths);
        missing.extend(retried("asking which paths are missing", ANSWER_TIMEOUT, progress, ask).await?);
    }
    progress.paths.add(paths.len() as u64);
    progress.paths_present.add((paths.len() - missing.len()) as u64);
    let infos: Vec<_> = closure.iter().map(|(_, info)| info).collect();
    let order = references_first(&infos).map_err(|path| crate::StoreError::Damaged {
        path: path.to_string().into(),
        message: "it refers to itself through others".to_owned(),
    })?;
    let ordered = order.into_iter().filter(|n| missing.contains(&paths[*n]));
    let cut_path =
        |n: usize| CutPath { info: closure[n].1.clone(), host_path: closure[n].0.host_path.clone() };
    let missing: Vec<_> = ordered.map(cut_path).collect();
    progress.archive_bytes.add(missing.iter().map(|path| path.info.nar_size).sum());
    Ok(missing)
}

/// What a task gave; its panics go on here.
fn joined<T>(result: Result<Result<T, TransferError>, tokio::task::JoinError>) -> Result<T, TransferError> {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(TransferError::Cancelled),
        },
    }
}

struct CloseOnDrop(Arc<Semaphore>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
