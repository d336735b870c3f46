//! Closures mounted before they are here: every byte as it was made, wrong ones refused by name, and a cache that goes
//! away and comes back. Needs a kernel with FUSE and the right to mount.
#![cfg(feature = "lazy")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use calve_nix::sign::{SecretKey, TrustedKeys};
use calve_nix::{Compression, StorePath};
use calve_store::Destination;
use calve_store::cache::{Cache, CacheOptions, GcPolicy, NarEncoding};
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::lazy::{Chunks, ChunksOptions, LazyClosure, LazyError, Mount, Proof};
use calve_store::pull::{PullOptions, Source};
use calve_store::push::{PushOptions, push};
use calve_store::recipe::{Recipe, RecipeId};
use calve_store::remote::{CacheInfo, Manifest, Remote, RemoteError};
use futures_util::stream::{BoxStream, StreamExt};
use support::closures::{Chain, path, text};
use support::{Host, file, listing, odd_tree};

/// How long the test waits for what must happen at some time.
const DEADLINE: Duration = Duration::from_secs(60);

/// A cache, and what goes wrong on the way from it.
struct Way {
    cache: Cache,
    away: AtomicBool,
    flip_chunks: AtomicBool,
    swap_recipes: AtomicBool,
    tamper: Mutex<Option<fn(&mut Manifest)>>,
    chunks: AtomicUsize,
    requests: AtomicUsize,
}

#[async_trait]
impl Remote for Way {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        self.cache.info().await
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.cache.missing_paths(paths).await
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.cache.missing_chunks(chunks).await
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.cache.put_chunks(chunks).await
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.cache.commit(paths, recipes).await
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.asked()?;
        let mut manifests = self.cache.closure(roots).await?;
        if let Some(tamper) = *self.tamper.lock().unwrap() {
            manifests.iter_mut().filter(|it| it.info.path.name().starts_with("middle")).for_each(tamper);
        }
        Ok(manifests)
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.asked()?;
        let mut recipes = self.cache.recipes(ids).await?;
        if self.swap_recipes.load(Ordering::SeqCst) {
            recipes.reverse();
        }
        Ok(recipes)
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        self.asked()?;
        self.chunks.fetch_add(ids.len(), Ordering::SeqCst);
        let flip = self.flip_chunks.load(Ordering::SeqCst);
        let chunks = self.cache.chunks(ids).await?;
        let flipped = move |mut chunk: StoredChunk| {
            if flip {
                let mut plain = zstd::bulk::decompress(&chunk.zstd, chunk.len as usize).unwrap();
                plain[0] ^= 1;
                chunk.zstd = zstd::bulk::compress(&plain, 1).unwrap().into();
            }
            chunk
        };
        Ok(chunks.map(move |chunk| chunk.map(flipped)).boxed())
    }
}

impl Way {
    fn asked(&self) -> Result<(), RemoteError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        match self.away.load(Ordering::SeqCst) {
            true => {
                Err(RemoteError::Unreachable { cache: "test".to_owned(), message: "it is away".to_owned() })
            }
            false => Ok(()),
        }
    }
}

/// A pushed closure, and a place to mount it on.
struct Scene {
    from: Host,
    root: StorePath,
    way: Arc<Way>,
    to: Host,
    runtime: tokio::runtime::Runtime,
}

impl Scene {
    /// Skips the test, with a sentence, where nothing can be mounted.
    fn new(fill: impl FnOnce(&Host) -> StorePath) -> Option<Self> {
        if let Err(error) = Mount::check() {
            eprintln!("skipped: {error}");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may mount without fusermount3");
            return None;
        }
        Some(Self::without_mount(fill))
    }

    fn without_mount(fill: impl FnOnce(&Host) -> StorePath) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let (from, to) = (Host::new(), Host::new());
        let root = fill(&from);
        let cache = runtime.block_on(async {
            let options =
                CacheOptions { name: Some("test-1".to_owned()), ..CacheOptions::local(&to.path("cache")) };
            let cache = Cache::open(options).await.unwrap();
            let remote = Arc::new(cache.clone());
            push(
                from.store.clone(),
                std::slice::from_ref(&root),
                remote,
                PushOptions::default(),
                Arc::default(),
            )
            .await
            .unwrap();
            cache
        });
        let way = Way {
            cache,
            away: AtomicBool::default(),
            flip_chunks: AtomicBool::default(),
            swap_recipes: AtomicBool::default(),
            tamper: Mutex::default(),
            chunks: AtomicUsize::default(),
            requests: AtomicUsize::default(),
        };
        std::fs::create_dir(to.path("mount")).unwrap();
        Self { from, root, way: Arc::new(way), to, runtime }
    }

    fn chain() -> Option<Self> {
        Self::new(|host| Chain::new(host, 1).program)
    }

    fn trusted(&self) -> TrustedKeys {
        self.way.cache.public_keys().iter().map(|key| key.parse().unwrap()).collect()
    }

    fn chunks(&self, read_max: Duration) -> Chunks {
        let source = Source { name: "test".to_owned(), remote: self.way.clone() };
        let options =
            ChunksOptions { dir: Some(self.to.path("")), read_max, ..ChunksOptions::new(vec![source]) };
        let _entered = self.runtime.enter();
        Chunks::new(options)
    }

    fn open(&self, chunks: &Chunks, trusted: &TrustedKeys) -> Result<LazyClosure, LazyError> {
        let source = Source { name: "test".to_owned(), remote: self.way.clone() };
        let (sources, roots) = ([source], [self.root.clone()]);
        let nothing = |_: &[StorePath]| Ok(BTreeSet::new());
        self.runtime.block_on(LazyClosure::open(&sources, chunks, &roots, trusted, nothing))
    }

    fn mount(&self, chunks: &Chunks) -> Mounted {
        let closure = self.open(chunks, &self.trusted()).unwrap();
        let _entered = self.runtime.enter();
        Mounted(Some(Mount::new(closure, chunks.clone(), &self.to.path("mount")).unwrap()))
    }

    fn mounted(&self, name: &str) -> PathBuf {
        let mut found = std::fs::read_dir(self.to.path("mount")).unwrap().map(|entry| entry.unwrap().path());
        found.find(|path| path.to_str().unwrap().ends_with(name)).unwrap()
    }

    fn assert_equal(&self) {
        let paths: Vec<_> = support::names(&self.from.path("nix/store"));
        assert_eq!(support::names(&self.to.path("mount")), paths);
        for path in paths {
            let (here, there) = (self.to.path("mount").join(&path), self.from.path("nix/store").join(&path));
            assert!(listing(&here) == listing(&there), "{path}");
        }
    }
}

/// A mount that is gone when the test is.
struct Mounted(Option<Mount>);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

#[test]
fn every_file_is_as_it_was_made_and_comes_when_it_is_touched() {
    let Some(scene) = Scene::new(|host| {
        let (odd, chain) = (path(9, "odd-1.0"), Chain::new(host, 1));
        host.package(&odd, &[&chain.program, &chain.middle, &chain.library], |root| {
            odd_tree(root);
            file(&root.join("large"), &text(7, 12_000_000, &[&chain.library]), 0o444);
        });
        odd
    }) else {
        return;
    };
    let chunks = scene.chunks(DEADLINE);
    let mount = scene.mount(&chunks);
    assert!(scene.way.requests.load(Ordering::SeqCst) <= 5, "a mount takes few requests");
    let before = scene.way.chunks.load(Ordering::SeqCst);
    let entries = std::fs::read_dir(scene.mounted("-odd-1.0").join("modes")).unwrap().count();
    assert_eq!((entries, scene.way.chunks.load(Ordering::SeqCst)), (4, before), "names are known already");
    let size = scene.mounted("-odd-1.0").join("size-70000");
    assert_eq!(std::fs::read(size).unwrap(), support::noise(70_000));
    let touched = scene.way.chunks.load(Ordering::SeqCst) - before;
    assert!((1..=5).contains(&touched), "{touched} chunks for a small file");
    scene.assert_equal();
    // Twice, and from many threads at once, each chunk comes once.
    let all = scene.way.chunks.load(Ordering::SeqCst);
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| scene.assert_equal()))));
    assert_eq!(scene.way.chunks.load(Ordering::SeqCst), all);
    assert!(File::create(scene.mounted("-odd-1.0").join("new")).is_err(), "nothing can be written");
    drop(mount);
    assert!(support::names(&scene.to.path("mount")).is_empty(), "the mount is gone");
}

#[test]
fn programs_are_started_from_a_mount() {
    let Some(scene) = Scene::new(|host| {
        let program = path(3, "true-1.0");
        host.package(&program, &[], |root| {
            let bytes = std::fs::read("/proc/self/exe").unwrap();
            file(&root.join("bin/self"), &bytes, 0o555);
        });
        program
    }) else {
        return;
    };
    let chunks = scene.chunks(DEADLINE);
    let _mount = scene.mount(&chunks);
    let program = scene.mounted("-true-1.0").join("bin/self");
    let output = Command::new(program).args(["--list", "--format", "terse"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("programs_are_started_from_a_mount"));
}

#[test]
fn listings_stay_with_their_paths_in_a_cache() {
    let scene = Scene::without_mount(|host| Chain::new(host, 1).program);
    let cache = &scene.way.cache;
    let opens = || {
        let chunks = scene.chunks(DEADLINE);
        scene.open(&chunks, &scene.trusted()).unwrap().paths.len()
    };
    assert_eq!(opens(), 3);
    let library = scene.runtime.block_on(async {
        // What is pinned keeps its listing, whatever else goes.
        cache.pin("kept", &scene.root, None).await.unwrap();
        let all =
            GcPolicy { max_age: Some(Duration::ZERO), grace: Some(Duration::ZERO), ..GcPolicy::default() };
        let collected = cache.collect(&all).await.unwrap();
        assert_eq!((collected.paths_kept, collected.chunks_removed), (3, 0));
        assert_eq!(cache.verify(None).await.unwrap().damage, []);
        let closure = cache.closure(std::slice::from_ref(&scene.root)).await.unwrap();
        closure.into_iter().find(|manifest| manifest.info.path.name() == "library-1.0").unwrap()
    });
    assert_eq!(opens(), 3);
    scene.runtime.block_on(async {
        // An index that is built anew from the packs finds them again.
        let dir = scene.to.path("again");
        std::fs::create_dir(&dir).unwrap();
        let copied = Command::new("cp").arg("-a").arg(scene.to.path("cache/objects")).arg(&dir).status();
        assert!(copied.unwrap().success());
        let again = Cache::open(CacheOptions::local(&dir)).await.unwrap();
        assert_eq!(again.find(library.info.path.hash_part()).await.unwrap().unwrap(), library);
        assert_eq!(again.closure(std::slice::from_ref(&scene.root)).await.unwrap().len(), 3);

        // What comes as `nix copy` sends it is listed too, and alike.
        let other = Cache::open(CacheOptions::local(&scene.to.path("other"))).await.unwrap();
        let archive = cache.nar_stream(&library, NarEncoding::Plain).await.unwrap();
        other.stage_nar("library.nar", archive).await.unwrap();
        let info = library.info.clone();
        let taken = other.put_nar("library.nar", Compression::None, info).await.unwrap();
        let (taken, kept) = (taken.lazy.unwrap(), library.lazy.clone().unwrap());
        assert_eq!(taken.listing, kept.listing);
        assert_ne!(taken.signatures, kept.signatures, "each vouches with its own key");
    });
}

/// The reason why the closure is not mounted after a change to what the cache says.
fn refused(change: impl FnOnce(&Scene)) -> Option<String> {
    let scene = Scene::chain()?;
    change(&scene);
    let chunks = scene.chunks(Duration::from_millis(200));
    let error = scene.open(&chunks, &scene.trusted()).err().expect("it is refused");
    Some(error.to_string())
}

#[test]
fn what_a_cache_does_not_vouch_for_is_refused_by_name() {
    let tampered = |tamper: fn(&mut Manifest)| {
        refused(|scene| *scene.way.tamper.lock().unwrap() = Some(tamper)).unwrap_or_default()
    };
    if Scene::chain().is_none() {
        return;
    }
    for tamper in [
        (|it| it.lazy.as_mut().unwrap().listing.0[0] ^= 1) as fn(&mut Manifest),
        |it| it.lazy.as_mut().unwrap().signatures.clear(),
        |it| it.lazy.as_mut().unwrap().signatures[0].replace_range(7..9, "AA"),
        |it| it.recipe.0[3] ^= 1,
        |it| it.info.nar_size += 8,
        |it| it.info.references.truncate(1),
        |it| {
            let text = Proof::text(&it.info, &it.recipe, &it.lazy.as_ref().unwrap().listing);
            let stranger = SecretKey::from_seed("stranger-1", [9; 32]).unwrap();
            it.lazy.as_mut().unwrap().signatures = vec![stranger.sign(&text).to_string()];
        },
    ] {
        let said = tampered(tamper);
        assert!(said.contains("-middle-2.0") && said.contains("cannot be trusted"), "{said}");
    }
    let said = tampered(|it| it.lazy = None);
    assert!(said.contains("-middle-2.0") && said.contains("no signed listing"), "{said}");
    let said = refused(|scene| scene.way.swap_recipes.store(true, Ordering::SeqCst)).unwrap();
    assert!(said.starts_with("recipe ") && said.contains("another id"), "{said}");
    let said = refused(|scene| scene.way.flip_chunks.store(true, Ordering::SeqCst)).unwrap();
    assert!(said.contains("listings") && said.contains("damaged: its bytes have the id"), "{said}");

    let scene = Scene::chain().unwrap();
    let stranger = SecretKey::from_seed("stranger-1", [9; 32]).unwrap().public();
    let chunks = scene.chunks(DEADLINE);
    let error = scene.open(&chunks, &[stranger].into_iter().collect()).err().unwrap();
    assert!(error.to_string().contains("cannot be trusted"), "{error}");
}

/// What reading the first byte of a file behind this offset gives; each time another, so that no page cache helps.
fn read(path: &Path, offset: u64) -> std::io::Result<u8> {
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, offset)?;
    Ok(byte[0])
}

#[test]
fn wrong_blocks_are_never_read_and_a_cache_that_went_away_is_waited_for() {
    let Some(scene) = Scene::new(|host| {
        let large = path(5, "large-1.0");
        host.package(&large, &[], |root| file(&root.join("large"), &support::noise(40_000_000), 0o444));
        large
    }) else {
        return;
    };
    let chunks = scene.chunks(Duration::from_millis(300));
    let mount = scene.mount(&chunks);
    let large = scene.mounted("-large-1.0").join("large");
    let expected = support::noise(40_000_000);
    assert_eq!(read(&large, 5).unwrap(), expected[5]);

    scene.way.flip_chunks.store(true, Ordering::SeqCst);
    let error = read(&large, 20_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    scene.way.flip_chunks.store(false, Ordering::SeqCst);
    wait_until(|| read(&large, 20_000_000).is_ok_and(|byte| byte == expected[20_000_000]));

    scene.way.away.store(true, Ordering::SeqCst);
    let error = read(&large, 30_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    scene.way.away.store(false, Ordering::SeqCst);
    wait_until(|| read(&large, 30_000_000).is_ok_and(|byte| byte == expected[30_000_000]));
    drop(mount);

    // With more patience the same read only takes longer.
    let chunks = scene.chunks(DEADLINE);
    let _mount = scene.mount(&chunks);
    scene.way.away.store(true, Ordering::SeqCst);
    let reading = std::thread::spawn(move || read(&large, 35_000_000).unwrap());
    let asked = scene.way.requests.load(Ordering::SeqCst);
    wait_until(|| scene.way.requests.load(Ordering::SeqCst) > asked);
    scene.way.away.store(false, Ordering::SeqCst);
    assert_eq!(reading.join().unwrap(), expected[35_000_000]);
}

#[test]
fn the_rest_comes_into_the_store_and_nothing_comes_twice() {
    let Some(scene) = Scene::chain() else { return };
    let chunks = scene.chunks(DEADLINE);
    let mount = scene.mount(&chunks);
    let program = scene.mounted("-program-3.0").join("bin/program");
    let first = std::fs::read(&program).unwrap();
    let options = PullOptions {
        trusted: scene.trusted(),
        destination: Some(Destination::Private),
        ..PullOptions::default()
    };
    let (store, root) = (scene.to.store.clone(), scene.to.path("store"));
    scene.runtime.block_on(mount.0.as_ref().unwrap().prefetch(store, options, &root));
    let closure = scene.to.store.closure(std::slice::from_ref(&scene.root)).unwrap();
    assert_eq!(closure.paths.len(), 3);
    // From here on no cache is needed, not even for what is read for the first time.
    scene.way.away.store(true, Ordering::SeqCst);
    scene.assert_equal();
    assert_eq!(std::fs::read(&program).unwrap(), first);
    let fetched: BTreeSet<_> = closure.paths.iter().map(|path| path.path.clone()).collect();
    assert!(fetched.contains(&scene.root));
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
