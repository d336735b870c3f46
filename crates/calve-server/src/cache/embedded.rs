//! The cache of a server, behind `/cache` of its HTTP: opened when it is first needed, so that a server that nobody asks
//! for closures stays small.
//!
//! ```text
//! who was let in by the server ─▶ may pull and push
//! who says a token of the cache ─▶ may do what that token allows
//! machine ─▶ pin machine-<id> on what it runs, until its end
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use calve_core::MachineId;
use calve_nix::StorePath;
use calve_nix::sign::{PublicKey, TrustedKeys};
use calve_store::cache::{Cache, CacheError, CacheOptions};
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::{Destination, Store, TransferError};
use tokio::sync::{OnceCell, Semaphore};
use tower_service::Service;

use super::answer::Refusal;
use super::tokens::Tokens;
use super::{Upstreams, Visibility, routers, token_of};
use crate::api::Principal;
use crate::memory;

/// What the names of machines' pins begin with.
pub const MACHINE_PINS: &str = "machine-";
/// Closures that are put into the store at once: each may hold tens of MB of chunks, and the disk is the bound.
const MATERIALISED_AT_ONCE: usize = 2;

/// The cache of a server.
pub struct Embedded {
    dir: PathBuf,
    opened: OnceCell<Opened>,
    tokens: Tokens,
    /// The machines that lived when the server started, where that is known: pins of others are leftovers.
    living: Mutex<Option<BTreeSet<MachineId>>>,
    room: Semaphore,
}

struct Opened {
    cache: Cache,
    /// For those whom the server let in, and for strangers with a token of the cache.
    admitted: Router,
    strangers: Router,
    /// Machines that have pins.
    pinned: Mutex<BTreeSet<MachineId>>,
}

/// Why a closure was not put into the store.
#[derive(Debug, thiserror::Error)]
pub enum MaterialiseError {
    /// The cache cannot be used.
    #[error("the server's cache cannot be used")]
    Cache(#[source] CacheError),
    /// The closure did not arrive.
    #[error("the closure cannot be taken out of the server's cache")]
    Transfer(#[source] TransferError),
}

impl Embedded {
    /// The cache in this directory; nothing is made or read yet.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            tokens: Tokens::new(&dir),
            dir,
            opened: OnceCell::new(),
            living: Mutex::default(),
            room: Semaphore::new(MATERIALISED_AT_ONCE),
        }
    }

    /// Its routes, to be nested under [`calve_wire::api::CACHE_PREFIX`].
    pub fn routes<S: Clone + Send + Sync + 'static>(self: &Arc<Self>) -> Router<S> {
        let this = self.clone();
        Router::new().fallback(move |request: Request| {
            let this = this.clone();
            async move { this.answer(request).await }
        })
    }

    async fn answer(&self, request: Request) -> Response {
        let admitted = request.extensions().get::<Principal>().is_some();
        // Strangers do not get as far as opening it.
        if !admitted && !self.knows(request.headers()) {
            return Refusal::unauthorized().into_response();
        }
        let opened = match self.open().await {
            Ok(opened) => opened,
            Err(error) => {
                return Refusal::failed("the server's cache cannot be used", &error).into_response();
            }
        };
        let mut router = if admitted { opened.admitted.clone() } else { opened.strangers.clone() };
        match router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(said) = token_of(headers) else { return false };
        match self.tokens.find(&said) {
            Ok(token) => token.is_some(),
            Err(error) => {
                tracing::error!("the tokens of the cache cannot be used: {}", crate::chain(&error));
                false
            }
        }
    }

    /// Whether there is a cache already.
    fn exists(&self) -> bool {
        self.opened.initialized() || self.dir.join("key").exists()
    }

    async fn open(&self) -> Result<&Opened, CacheError> {
        self.opened
            .get_or_try_init(async || {
                let cache = Cache::open(CacheOptions::local(&self.dir)).await?;
                let none =
                    Upstreams::new(Vec::new(), TrustedKeys::default()).expect("there are none to refuse");
                let [admitted, strangers] = routers(&cache, [Visibility::Open, Visibility::Private], none);
                let pinned = self.reap(&cache).await?;
                tracing::info!(dir = %self.dir.display(), "the cache is open");
                Ok(Opened { cache, admitted, strangers, pinned: Mutex::new(pinned) })
            })
            .await
    }

    /// Removes the pins of machines that ended without a server; gives those that still have some.
    async fn reap(&self, cache: &Cache) -> Result<BTreeSet<MachineId>, CacheError> {
        let living = std::mem::take(&mut *lock(&self.living));
        let mut pinned = BTreeSet::new();
        for name in cache.pin_names().await? {
            let id = name.strip_prefix(MACHINE_PINS).and_then(|id| id.parse::<MachineId>().ok());
            // Others are somebody else's.
            let Some(id) = id else { continue };
            if living.as_ref().is_none_or(|living| living.contains(&id)) {
                pinned.insert(id);
            } else {
                cache.unpin(&name).await?;
            }
        }
        Ok(pinned)
    }

    /// Notes which machines live as the server starts; without that no pin counts as a leftover.
    pub fn set_living(&self, living: BTreeSet<MachineId>) {
        // A cache that is not there yet holds no pins of earlier machines.
        if self.exists() {
            *lock(&self.living) = Some(living);
        }
    }

    /// Puts `roots` with everything that they refer to into the private store, where it lacks them: each path's hash is
    /// checked on the way. Gives false where the cache does not have all of it.
    pub async fn materialise(
        &self,
        store: &Arc<Store>,
        roots: &[StorePath],
    ) -> Result<bool, MaterialiseError> {
        if !self.exists() {
            return Ok(false);
        }
        let opened = self.open().await.map_err(MaterialiseError::Cache)?;
        let _room = self.room.acquire().await.expect("the semaphore is never closed");
        let keys = opened.cache.public_keys();
        let options = PullOptions {
            trusted: keys.iter().filter_map(|key| key.parse::<PublicKey>().ok()).collect(),
            destination: Some(Destination::Private),
            ..PullOptions::default()
        };
        let source = Source { name: "of this server".to_owned(), remote: Arc::new(opened.cache.clone()) };
        let pulled = pull(store.clone(), &[source], roots, options, Arc::new(Progress::default())).await;
        // The push before and this have left chunks' worth of free memory behind.
        memory::trim();
        match pulled {
            Ok(paths) => {
                tracing::info!(paths = paths.len(), "a closure was taken out of the cache");
                Ok(true)
            }
            Err(TransferError::Remote(calve_store::remote::RemoteError::Missing { .. })) => Ok(false),
            Err(error) => Err(MaterialiseError::Transfer(error)),
        }
    }

    /// Keeps what a machine runs from garbage collection of the cache, as far as it lies there, until [`Self::unpin`].
    pub async fn pin(&self, id: MachineId, roots: &[StorePath]) {
        if roots.is_empty() || !self.exists() {
            return;
        }
        let pinning = async {
            let opened = self.open().await?;
            for root in roots {
                if opened.cache.find(root.hash_part()).await?.is_some() {
                    // Noted first: what was begun is undone too.
                    lock(&opened.pinned).insert(id);
                    opened.cache.pin(&pin_name(id), root, None).await?;
                }
            }
            Ok::<_, CacheError>(())
        };
        if let Err(error) = pinning.await {
            tracing::warn!(machine = %id, error = crate::chain(&error), "the machine's closure is not pinned in the cache");
        }
    }

    /// Lets go of what a machine ran. Absence is success.
    pub async fn unpin(&self, id: MachineId) {
        if !self.exists() {
            return;
        }
        let unpinning = async {
            let opened = self.open().await?;
            if lock(&opened.pinned).contains(&id) {
                opened.cache.unpin(&pin_name(id)).await?;
                lock(&opened.pinned).remove(&id);
            }
            Ok::<_, CacheError>(())
        };
        if let Err(error) = unpinning.await {
            tracing::warn!(machine = %id, error = crate::chain(&error), "a closure stays pinned in the cache");
        }
    }
}

fn pin_name(id: MachineId) -> String {
    format!("{MACHINE_PINS}{id}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_core::Timestamp;
    use calve_store::push::{PushOptions, push};

    #[tokio::test]
    async fn a_closure_gets_into_the_store_and_pins_of_machines_that_ended_go() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("file"), home.path().display().to_string()).unwrap();
        let stores = ["theirs", "ours"].map(|name| Arc::new(Store::open(&at(name)).unwrap()));
        let [theirs, ours] = stores;
        let roots = [theirs.add(&at("file"), None).unwrap()];
        let cache = Embedded::new(at("cache"));
        assert!(!cache.materialise(&ours, &roots).await.unwrap());
        assert!(!at("cache").exists());

        let remote = Arc::new(cache.open().await.unwrap().cache.clone());
        assert!(!cache.materialise(&ours, &roots).await.unwrap());
        push(theirs, &roots, remote, PushOptions::default(), Arc::default()).await.unwrap();
        assert!(cache.materialise(&ours, &roots).await.unwrap());
        assert_eq!(ours.private_paths().unwrap(), roots);

        let ids = [1, 2, 3].map(|n| MachineId::new(Timestamp(1), n));
        for id in ids {
            cache.pin(id, &roots).await;
        }
        cache.unpin(ids[0]).await;
        cache.unpin(ids[0]).await;
        let next = Embedded::new(at("cache"));
        next.set_living(BTreeSet::from([ids[2]]));
        let left = next.open().await.unwrap().cache.pin_names().await.unwrap();
        assert_eq!(left, [pin_name(ids[2])]);
    }
}
