//! The engine behind a cache server: chunks in packs in an object storage, an index beside it.
//!
//! ```text
//! DIR/index.sqlite   where chunks lie, which paths there are, last use, pins     built anew from the packs if lost
//! DIR/key            the secret key that signs what is committed
//! DIR/reserve        room that a collection gives back when the disk is full
//! DIR/uploads/       archives as `nix copy` sent them, until their narinfo comes
//! DIR/objects/, S3   packs/ab/…: chunks, recipes and manifests, each its own zstd frame
//! ```
//! An object is written whole before a row names it; rows change in transactions. So a crash leaves at most packs that
//! nothing names, and [`Cache::collect`] removes those after the grace.

mod ahead;
mod answer;
mod beginnings;
mod check;
mod commit;
mod directory;
mod error;
mod gc;
mod heal;
mod index;
mod keys;
mod listing;
mod manifest;
mod nar;
mod objects;
mod pack;
mod read;
mod rebuild;
mod recent;
mod reserve;
mod rewrite;
mod stats;
mod upload;
mod verify;
mod write;

/// What the fuzz targets read: stored things, of which nothing else outside of this module knows.
#[doc(hidden)]
pub mod stored {
    use super::{CacheError, manifest, pack};
    use crate::remote::Manifest;

    pub fn read_manifest(bytes: &[u8]) -> Result<Manifest, CacheError> {
        manifest::decode(bytes)
    }

    pub fn write_manifest(manifest: &Manifest) -> Vec<u8> {
        manifest::encode(manifest)
    }

    /// The bytes of all frames of a whole pack, by its own account.
    pub fn read_pack(object: &[u8]) -> Result<u64, CacheError> {
        let (entries, frames) = pack::read_contents(object, object.len() as u64, "pack")?;
        let intact = pack::frames_intact(object, frames);
        let bytes = entries.iter().map(|(_, entry)| u64::from(entry.stored)).sum();
        if intact { Ok(bytes) } else { Err(CacheError::damaged("pack", "its frames")) }
    }
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use calve_nix::SecretKey;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use ahead::Aheads;
use beginnings::Beginnings;
use index::Index;
use objects::Objects;
use recent::Recent;

use crate::processors::processors;
use crate::remote::Directory;

pub use ahead::Ahead;
pub use error::{CacheError, DISK_FULL};
pub use gc::{Collected, GcPolicy};
pub use nar::NarEncoding;
pub use objects::Storage;
pub use pack::PACK_BYTES;
pub use rebuild::Rebuilt;
pub use reserve::release as release_reserve;
pub use stats::Stats;
pub use verify::{Damage, Verified};

/// How long a chunk stays without being used by a path, and a path without being used, whatever the policy: an upload of
/// a large closure over a slow line ends within it.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Rank among caches where nothing else is said; `cache.nixos.org` has 40.
pub const PRIORITY: u32 = 30;
/// The part of the grace after which a use is noted again: writing at each would be a write for every read.
const TOUCH_PART: u32 = 8;

/// How a cache is opened.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Where its objects lie.
    pub storage: Storage,
    /// Name of the key that is made when there is none; by default of the host and a random number, since two keys of one
    /// name cannot both be trusted.
    pub name: Option<String>,
    /// Rank among caches; lower is asked first.
    pub priority: u32,
    /// How long uploads in flight are spared.
    pub grace: Duration,
}

impl CacheOptions {
    /// A cache with all its objects in one local directory.
    pub fn local(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), storage: Storage::Local, name: None, priority: PRIORITY, grace: GRACE }
    }
}

/// A cache; clones share it.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    /// How messages call it.
    called: String,
    dir: PathBuf,
    priority: u32,
    grace: Duration,
    key: SecretKey,
    index: Index,
    objects: Objects,
    /// Work for processors: archives that are checked or cut at once.
    cpus: Semaphore,
    /// Streams of chunks that read ahead.
    eager: Arc<Semaphore>,
    recent: Recent,
    aheads: Aheads,
    beginnings: Beginnings,
    /// Where all of it lies, if that is one local directory.
    directory: Option<Directory>,
}

impl Cache {
    /// Opens a cache, or makes one. Takes the same time whatever it holds, unless its index was lost: then that is built
    /// anew from the packs.
    pub async fn open(options: CacheOptions) -> Result<Self, CacheError> {
        let dir = options.dir.clone();
        let cache = Self::open_as_it_is(options, None).await?;
        blocking(move || reserve::keep(&dir)).await;
        Ok(cache)
    }

    /// As [`Self::open`], without the room that a collection gives back: one that is under way elsewhere may just need it.
    /// Messages call the cache by its directory, or as it is `called`.
    async fn open_as_it_is(options: CacheOptions, called: Option<&str>) -> Result<Self, CacheError> {
        let CacheOptions { dir, storage, name, priority, grace } = options;
        let called = called.map_or_else(|| dir.display().to_string(), str::to_owned);
        let opened = blocking(move || {
            std::fs::create_dir_all(&dir).map_err(CacheError::io("create", &dir))?;
            let key = keys::open(&dir, name.as_deref())?;
            let (index, made) = Index::open(&index::file(&dir))?;
            let objects = Objects::open(&storage, &dir)?;
            let cpus = Semaphore::new(processors());
            let eager = Arc::new(Semaphore::new(read::EAGER_STREAMS_MAX));
            let (recent, aheads, beginnings) = Default::default();
            let directory = directory::of(&dir, &objects, &key);
            let inner = Inner {
                called,
                dir,
                priority,
                grace,
                key,
                index,
                objects,
                cpus,
                eager,
                recent,
                aheads,
                beginnings,
                directory,
            };
            Ok((inner, made))
        });
        let (inner, made) = opened.await?;
        let cache = Self(Arc::new(inner));
        cache.check_owner(made).await?;
        Ok(cache)
    }

    /// How long uploads in flight are spared.
    pub fn grace(&self) -> Duration {
        self.0.grace
    }

    /// The directory of the index.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Where the objects lie.
    pub fn storage(&self) -> &str {
        self.0.objects.shown()
    }

    /// Public keys, `<name>:<base64>`; what is committed is signed with the first.
    pub fn public_keys(&self) -> Vec<String> {
        vec![self.0.key.public().to_string()]
    }

    /// The name of the key that signs.
    pub fn key_name(&self) -> &str {
        self.0.key.name()
    }

    /// Uses are noted again if they were last noted before this.
    fn touch_since_ms(&self) -> i64 {
        now_ms() - (self.0.grace / TOUCH_PART).as_millis() as i64
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Runs blocking work; a panic in it is passed on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    ended(&mut tokio::task::spawn_blocking(work)).await
}

/// What a task gave that nobody aborts; its panics go on here.
async fn ended<T>(task: &mut JoinHandle<T>) -> T {
    match task.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only where the runtime shuts down, which drops this future too.
            Err(_) => std::future::pending().await,
        },
    }
}
