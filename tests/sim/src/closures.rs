//! The layer of closures: the real pull into a real store, from caches of the real engine that lie in what they answer; and
//! uploads to such a cache that are not what they say.
//!
//! ```text
//!  hostile uploads ─▶ cache ◀─ uploads as they should be
//!                       └─▶ what it answers ─▶ lies ─┐
//!  a stranger's cache: the same names, other bytes ──┴─▶ pull, cut off now and then ─▶ store ─▶ is each path genuine?
//! ```
//! How far a pull comes that is refused or cut off depends on threads, and is in no trace: that says what was asked of whom,
//! what the caches had in mind, and what there is once nobody lies.

mod liar;
mod package;

use std::path::Path;
use std::sync::Arc;

use calve_nix::sign::TrustedKeys;
use calve_store::archive::hash_tree;
use calve_store::cache::{Cache, CacheOptions};
use calve_store::index::LocalIndex;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::remote::Remote;
use calve_store::{Destination, Store, StoreOptions};
use tempfile::TempDir;

use crate::digest::Digest;
use crate::faults::{Chances, Fault, Faults, Without};
use crate::many::Outcome;
use crate::rng::{Rng, mix};
use crate::simulation::Plant;
use liar::{LIES, Liar, Lie};
use package::{Package, Upload};

/// Paths of a world, at least and below.
const PACKAGES: (u64, u64) = (2, 8);
/// Lies of one pull at most.
const LIES_MAX: u64 = 3;
/// Thousandths of the occasions on which a cache lies, or an upload is not what it says.
const LIES_PERMILLE: u64 = 500;
/// Questions of a pull after which it may be cut off.
const QUESTIONS_MAX: u64 = 8;
/// Thousandths of pulls that are cut off.
const CUT_PERMILLE: u64 = 250;
/// Thousandths of pulls before which the store is another one, in which nothing lies yet.
const ANEW_PERMILLE: u64 = 500;

/// Pulls in a world where nobody says otherwise.
pub const PULLS: u64 = 10;

/// Simulates one world: so many pulls of whoever lies, then one of who does not.
pub fn run(seed: u64, pulls: u64, plant: Plant, without: &Without, keep: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime of one thread");
    runtime.block_on(async {
        let mut world = World::new(seed, plant, without, keep).await;
        world.fill().await;
        for step in 0..pulls {
            let wish = world.wish();
            if !without.steps.contains(&step) && world.outcome.violations.is_empty() {
                world.pull(wish).await;
            }
        }
        world.end().await;
        (world.outcome.digest, world.outcome.trace) = world.digest.take();
        world.outcome.faults = world.faults.count();
        world.outcome
    })
}

struct World {
    dir: TempDir,
    rng: Rng,
    faults: Faults,
    packages: Vec<Package>,
    /// The one whose key is trusted, and the stranger's.
    caches: [Cache; 2],
    store: Arc<Store>,
    /// Which one it is.
    stores: u32,
    options: PullOptions,
    digest: Digest,
    outcome: Outcome,
}

/// A pull.
struct Wish {
    root: usize,
    /// Of which caches, in which order.
    sources: Vec<usize>,
    lies: Vec<(usize, Lie)>,
    cut_after: Option<u64>,
    anew: bool,
}

impl World {
    async fn new(seed: u64, plant: Plant, without: &Without, keep: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut rng = Rng::new(mix(seed, 7));
        let packages = package::make(&mut rng);
        let mut caches = Vec::new();
        for name in ["ours", "stranger"] {
            let options =
                CacheOptions { name: Some(name.to_owned()), ..CacheOptions::local(&dir.path().join(name)) };
            caches.push(Cache::open(options).await.expect("a new cache"));
        }
        let caches: [Cache; 2] = caches.try_into().unwrap_or_else(|_| unreachable!("there are two"));
        let store = Arc::new(store(dir.path(), 0));
        let trusts = if plant == Plant::StrangersTrusted { &caches[..] } else { &caches[..1] };
        let trusted: TrustedKeys = trusts
            .iter()
            .flat_map(|cache| cache.public_keys())
            .map(|key| key.parse().expect("a cache's key"))
            .collect();
        let index = rng.chance(500).then(|| {
            let index = LocalIndex::open(&dir.path().join("index.sqlite"));
            Arc::new(index.expect("a new index"))
        });
        let destination = Some(Destination::Private);
        let options =
            PullOptions { trusted, index, destination, flush: Some(false), ..PullOptions::default() };
        let chances = Chances::default().with(Fault::Spoilt, LIES_PERMILLE);
        let faults = Faults::new(seed, chances, without.clone());
        let (digest, outcome) = (Digest::new(keep), Outcome::default());
        Self { dir, rng, faults, packages, caches, store, stores: 0, options, digest, outcome }
    }

    /// The caches get their paths, ours beside uploads that are not what they say.
    async fn fill(&mut self) {
        for n in 0..self.packages.len() {
            let package = self.packages[n].clone();
            if self.faults.happens(Fault::Spoilt) {
                let (spoilt, how) = Upload::spoilt(&package, &self.packages[..n], &mut self.faults);
                self.digest.line(0, &format!("an upload of {} whose {how}", package.name()));
                let refused = spoilt.give(&self.caches[0]).await.is_err();
                let path = package.info.path.hash_part();
                let holds = self.caches[0].holds(path).await.expect("an index that works");
                if !refused || holds {
                    self.violation(format!("the cache took {} whose {how}", package.name()));
                }
            }
            Upload::of(&package).give(&self.caches[0]).await.expect("what is right is taken");
            Upload::of(&package.forged()).give(&self.caches[1]).await.expect("a stranger takes its own");
        }
    }

    /// What is asked next, of whom, and what they have in mind.
    fn wish(&mut self) -> Wish {
        let root = self.rng.range(0, self.packages.len() as u64) as usize;
        let sources = self.rng.pick(&[&[0][..], &[1], &[0, 1], &[1, 0], &[1, 0], &[0, 0]]).to_vec();
        let mut lies = Vec::new();
        for _ in 0..LIES_MAX {
            if self.faults.happens(Fault::Spoilt) {
                let source = self.faults.range(0, sources.len() as u64) as usize;
                let about = self.faults.range(0, root as u64 + 1) as usize;
                let kind = LIES[self.faults.range(0, LIES.len() as u64) as usize];
                lies.push((source, Lie { kind, about }));
            }
        }
        let cut_after = self.rng.chance(CUT_PERMILLE).then(|| self.rng.range(0, QUESTIONS_MAX));
        let anew = self.rng.chance(ANEW_PERMILLE);
        Wish { root, sources, lies, cut_after, anew }
    }

    async fn pull(&mut self, wish: Wish) {
        let Wish { root, sources, lies, cut_after, anew } = wish;
        if anew {
            self.stores += 1;
            self.store = Arc::new(store(self.dir.path(), self.stores));
        }
        let line = format!(
            "pull of {} into store {} from {sources:?}, lies {lies:?}, cut off after {cut_after:?}",
            self.packages[root].name(),
            self.stores
        );
        self.digest.line(0, &line);
        let (mut named, mut cut) = (Vec::new(), Vec::new());
        for (n, source) in sources.iter().enumerate() {
            let own = lies.iter().filter(|(of, _)| *of == n).map(|(_, lie)| *lie).collect();
            let cache = self.caches[*source].clone();
            let liar = Arc::new(Liar::new(cache, &self.packages, own, cut_after));
            cut.push(liar.clone());
            named.push(Source { name: format!("cache {n}"), remote: liar as Arc<dyn Remote> });
        }
        let roots = [self.packages[root].info.path.clone()];
        let pulling =
            pull(self.store.clone(), &named, &roots, self.options.clone(), Arc::new(Progress::default()));
        let cuts = futures_util::future::select_all(cut.iter().map(|liar| Box::pin(liar.is_over())));
        tokio::select! {
            // Whatever it says: what counts is what lies in the store.
            _ = pulling => {}
            _ = cuts => {}
        }
        self.outcome.lifecycles += 1;
        self.outcome.servers += 1;
        self.check();
    }

    /// Whatever counts as valid is genuine, with all that it refers to.
    fn check(&mut self) {
        let mut wrong = Vec::new();
        let paths = self.packages.iter().map(|package| package.info.path.clone());
        let valid: Vec<_> =
            paths.filter(|path| self.store.closure(std::slice::from_ref(path)).is_ok()).collect();
        let closure = self.store.closure(&valid).expect("each is valid");
        let infos = self.store.path_infos(&closure).expect("all that is valid is known");
        for (path, info) in closure.paths.iter().zip(infos) {
            let name = path.path.name();
            let found = hash_tree(&path.host_path).ok().map(|(hash, _)| hash);
            match self.packages.iter().find(|made| made.info.path == path.path) {
                Some(made) if found == Some(made.info.nar_hash) => {
                    if info.references != made.info.references {
                        wrong.push(format!("{name} is valid and does not refer to what it does"));
                    }
                }
                _ => wrong.push(format!("{name} is valid and not what it was made as")),
            }
            if info.ca.is_none() && info.signatures.is_empty() {
                wrong.push(format!("{name} is unsigned"));
            }
        }
        wrong.into_iter().for_each(|what| self.violation(what));
    }

    /// Nobody lies any more: everything comes, and then nothing more.
    async fn end(&mut self) {
        let source = Source { name: "ours".to_owned(), remote: Arc::new(self.caches[0].clone()) };
        let roots: Vec<_> = self.packages.iter().map(|package| package.info.path.clone()).collect();
        for again in [false, true] {
            let options = self.options.clone();
            let sources = std::slice::from_ref(&source);
            match pull(self.store.clone(), sources, &roots, options, Arc::new(Progress::default())).await {
                Ok(came) if again && !came.is_empty() => {
                    self.violation("what is there is pulled again".to_owned())
                }
                Ok(_) => {}
                Err(error) => self.violation(format!("nobody lies, and a pull fails: {error}")),
            }
        }
        for package in self.packages.clone() {
            if self.store.host_path_of(&package.info.path).is_none() {
                self.violation(format!("{} did not come", package.name()));
            }
            self.digest.line(0, &format!("{} is {}", package.name(), package.info.nar_hash));
        }
        self.check();
        let scratch = self.dir.path().join(format!("store-{}/.tmp", self.stores));
        let left = std::fs::read_dir(scratch).expect("a store's directory");
        if left.count() > 0 {
            self.violation("something is left of a pull".to_owned());
        }
    }

    fn violation(&mut self, what: String) {
        self.digest.line(0, &format!("VIOLATION {what}"));
        if !self.outcome.violations.contains(&what) {
            self.outcome.violations.push(what);
        }
    }
}

/// A private store, on a host without Nix.
fn store(dir: &Path, n: u32) -> Store {
    let options = StoreOptions {
        nix_db: dir.join("nix/db.sqlite"),
        nix_store_dir: dir.join("nix/store"),
        nix_store_program: dir.join("no-such-program"),
    };
    Store::open_with(&dir.join(format!("store-{n}")), options).expect("a new store")
}
