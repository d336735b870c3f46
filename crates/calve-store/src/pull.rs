//! Pulling: a closure from caches into the local store.
//!
//! ```text
//!            one request         one request          many at once, bounded by bytes
//! caches ─▶ manifests ─▶ plan ─▶ recipes ─▶ plan ─▶ chunks ─▶ decode ─▶ slots ─▶ workers ─▶ land
//!           signatures   valid paths      local chunks   ids          in order  unpack,     in the order of
//!           checked      left out         left out       checked                NAR hash    references
//! ```
//! Nothing becomes visible before its archive's hash is right and all that it refers to is valid. What has landed stays
//! when the rest fails or the process is killed, so that the next pull goes on from there.

mod assemble;
mod fetch;
mod land;
mod local_chunks;
mod plan;
mod runs;
mod slots;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::sign::TrustedKeys;
use tokio::sync::mpsc;

use crate::index::LocalIndex;
use crate::place::Landing;
use crate::processors::processors;
use crate::progress::Progress;
use crate::remote::Remote;
use crate::{Destination, Store, TransferError};

use assemble::Work;
use fetch::Fetcher;
use land::Landings;
use plan::Plan;
#[cfg(feature = "lazy")]
pub(crate) use plan::{stalled, timely};
use slots::Slots;

/// How long a cache may send nothing before it counts as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Paths that are unpacked at once: more than cores, because each waits for its chunks and its disk now and then.
const WORKERS_MIN: usize = 4;
/// Beyond that, disks get slower, not faster.
const WORKERS_MAX: usize = 16;

/// A cache to pull from.
#[derive(Clone)]
pub struct Source {
    /// How messages call it.
    pub name: String,
    /// The cache.
    pub remote: Arc<dyn Remote>,
}

/// How to pull.
#[derive(Clone)]
pub struct PullOptions {
    /// The keys of which one must have signed each path.
    pub trusted: TrustedKeys,
    /// Where local chunks are looked up and pulled paths noted.
    pub index: Option<Arc<LocalIndex>>,
    /// The store that takes the paths; by default the one that [`Store::destination`] names.
    pub destination: Option<Destination>,
    /// Whether the disk is flushed before a path becomes valid, so that it is whole even after a power failure. By default
    /// as each store does it: the private one yes, Nix no (its `sync-before-registering`). A killed process leaves
    /// nothing half-valid either way.
    pub flush: Option<bool>,
    /// How long a cache may send nothing; [`STALL_TIMEOUT`] by default.
    pub stall_timeout: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            trusted: TrustedKeys::default(),
            index: None,
            destination: None,
            flush: None,
            stall_timeout: STALL_TIMEOUT,
        }
    }
}

/// Pulls `roots` with everything that they refer to; gives the paths that became valid by it, references first. Caches are
/// asked in the order given for what there is, and together for chunks. To give up, drop the future.
pub async fn pull(
    store: Arc<Store>,
    sources: &[Source],
    roots: &[StorePath],
    options: PullOptions,
    progress: Arc<Progress>,
) -> Result<Vec<StorePath>, TransferError> {
    let destination = options.destination.unwrap_or_else(|| store.destination());
    let flush = options.flush.unwrap_or(destination == Destination::Private);
    let landing = blocking({
        let store = Arc::clone(&store);
        move || Ok(Landing::new(store, destination, flush)?)
    });
    let landing = Arc::new(landing.await?);
    let plan = Arc::new(Plan::make(&store, &landing, sources, roots, &options, &progress).await?);
    if plan.paths.is_empty() {
        return Ok(Vec::new());
    }
    let slots = Arc::new(Slots::new(&landing.file("chunks"))?);
    // However this ends, the workers are told.
    let _stop = slots::StopOnDrop(Arc::clone(&slots));
    let (demand, demanded) = mpsc::unbounded_channel();
    let fetcher = Fetcher::new(sources, Arc::clone(&slots), options.stall_timeout, Arc::clone(&progress));
    let fetch = fetcher.run(plan.wanted.clone(), demanded);
    let (done, finished) = mpsc::unbounded_channel();
    let work = Arc::new(Work {
        store,
        plan: Arc::clone(&plan),
        slots: Arc::clone(&slots),
        landing: Arc::clone(&landing),
        index: options.index.clone(),
        progress: Arc::clone(&progress),
        next: AtomicUsize::new(0),
    });
    for _ in 0..processors().clamp(WORKERS_MIN, WORKERS_MAX).min(plan.paths.len()) {
        let (work, demand, done) = (Arc::clone(&work), demand.clone(), done.clone());
        tokio::task::spawn_blocking(move || work.run(&demand, &done));
    }
    drop((demand, done, work));
    Landings { plan, landing, index: options.index, progress, slots }.run(fetch, finished).await
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, TransferError>
where
    F: FnOnce() -> Result<T, TransferError> + Send + 'static,
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(TransferError::Cancelled),
        },
    }
}
