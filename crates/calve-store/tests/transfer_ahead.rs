//! Pushes whose large archives the cache hashes ahead of their commits, or will not.
#![cfg(feature = "cache")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use calve_nix::StorePath;
use calve_store::PathInfo;
use calve_store::cache::{Cache, CacheOptions};
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::index::LocalIndex;
use calve_store::push::{PushOptions, push};
use calve_store::recipe::{Recipe, RecipeId};
use calve_store::remote::{ArchivePart, CacheInfo, InProcess, Manifest, Remote, RemoteError};
use futures_util::stream::BoxStream;
use support::closures::path;
use support::{Host, file, noise};
use tokio::sync::mpsc::Receiver;

/// Larger than what is hashed with the commit.
const LARGE_BYTES: usize = 5 << 20;

/// A cache, and what was hashed ahead there.
struct Watched {
    cache: Cache,
    refuses: AtomicBool,
    asked: AtomicUsize,
    hashed: Mutex<Vec<StorePath>>,
    /// Whether who pushes knows that it is in this process. Then no chunk is stored before so many archives are hashed.
    lent: Option<usize>,
}

#[async_trait]
impl InProcess for Watched {
    async fn lend(&self, id: ChunkId, plain: Bytes) {
        self.cache.lend(id, plain).await;
    }

    async fn put_made(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        while self.hashed.lock().unwrap().len() < self.lent.unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.cache.put_made(chunks).await
    }
}

#[async_trait]
impl Remote for Watched {
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

    async fn hash_ahead(&self, info: PathInfo, parts: Receiver<ArchivePart>) -> Result<(), RemoteError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.refuses.load(Ordering::SeqCst) {
            return Err(RemoteError::Failed { cache: "cache".to_owned(), message: "not now".to_owned() });
        }
        let path = info.path.clone();
        self.cache.hash_ahead(info, parts).await?;
        self.hashed.lock().unwrap().push(path);
        Ok(())
    }

    fn in_process(&self) -> Option<&dyn InProcess> {
        self.lent.map(|_| self as &dyn InProcess)
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.cache.closure(roots).await
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.cache.recipes(ids).await
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        self.cache.chunks(ids).await
    }
}

/// A library and what refers to it and to itself in many places, both large, and something small above.
fn closure(host: &Host) -> [StorePath; 3] {
    let [library, program, script] = [path(1, "library-1"), path(2, "program-1"), path(3, "script-1")];
    host.package(&library, &[], |root| file(&root.join("lib/library.so"), &noise(LARGE_BYTES), 0o444));
    let mut contents = noise(2 * LARGE_BYTES);
    contents.iter_mut().for_each(|byte| *byte ^= 0x55);
    for (n, at) in (0..contents.len() - 32).step_by(30_011).enumerate() {
        let named = if n % 3 == 0 { &program } else { &library };
        contents[at..at + 32].copy_from_slice(named.hash_part().as_bytes());
    }
    host.package(&program, &[&library, &program], |root| {
        file(&root.join("bin/program"), &contents, 0o555);
    });
    host.package(&script, &[&program], |root| {
        file(&root.join("bin/script"), program.to_string().as_bytes(), 0o555);
    });
    [library, program, script]
}

/// Files that are not what they should be are pushed once they are again: nothing is remembered of how they were.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_pushed_once_it_is_right() {
    let host = Host::new();
    let [library, _, script] = closure(&host);
    let place = host.path("nix/store").join(library.base_name()).join("lib/library.so");
    let right = std::fs::read(&place).unwrap();
    let mut wrong = right.clone();
    wrong[LARGE_BYTES / 2] ^= 1;
    std::fs::remove_file(&place).unwrap();
    file(&place, &wrong, 0o444);
    let cache = Cache::open(CacheOptions::local(&host.path("cache"))).await.unwrap();
    let index = Some(Arc::new(LocalIndex::open(&host.path("chunks.sqlite")).unwrap()));
    let options = PushOptions { index, ..PushOptions::default() };
    let roots = std::slice::from_ref(&script);
    let remote: Arc<dyn Remote> = Arc::new(cache);
    let refused = push(Arc::clone(&host.store), roots, remote, options, Arc::default()).await.unwrap_err();
    assert!(chain(&refused).contains("-library-1 is damaged: its chunks give"), "{}", chain(&refused));
    std::fs::remove_file(&place).unwrap();
    file(&place, &right, 0o444);
    pushed(&host, "cache", false, None, &script).await;
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

async fn pushed(
    host: &Host,
    name: &str,
    refuses: bool,
    lent: Option<usize>,
    script: &StorePath,
) -> Arc<Watched> {
    let cache = Cache::open(CacheOptions::local(&host.path(name))).await.unwrap();
    let (refuses, asked, hashed) = (AtomicBool::new(refuses), AtomicUsize::new(0), Mutex::default());
    let watched = Arc::new(Watched { cache, refuses, asked, hashed, lent });
    let index = Some(Arc::new(LocalIndex::open(&host.path("chunks.sqlite")).unwrap()));
    let options = PushOptions { index, ..PushOptions::default() };
    let remote = Arc::clone(&watched) as Arc<dyn Remote>;
    let roots = std::slice::from_ref(script);
    let manifests = push(Arc::clone(&host.store), roots, remote, options, Arc::default()).await.unwrap();
    assert_eq!(manifests.len(), 3);
    watched
}

#[tokio::test(flavor = "multi_thread")]
async fn large_archives_are_hashed_while_they_are_cut_and_when_they_are_known() {
    let host = Host::new();
    let [library, program, script] = closure(&host);
    // First cut, and then by what the index knows of them.
    for name in ["first", "second"] {
        let watched = pushed(&host, name, false, None, &script).await;
        let mut hashed = watched.hashed.lock().unwrap().clone();
        hashed.sort_unstable_by_key(|path| path.name().to_owned());
        assert_eq!(hashed, [library.clone(), program.clone()], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_needs_nothing_hashed_ahead() {
    let host = Host::new();
    let [_, _, script] = closure(&host);
    let watched = pushed(&host, "cache", true, None, &script).await;
    assert!(watched.asked.load(Ordering::SeqCst) >= 1 && watched.hashed.lock().unwrap().is_empty());
}

/// Whose hash parts are restored in bytes that are still to be compressed as they are.
#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_archives_are_hashed_before_their_chunks_are_stored() {
    let host = Host::new();
    let [_, _, script] = closure(&host);
    let watched = pushed(&host, "cache", false, Some(2), &script).await;
    assert_eq!(watched.cache.verify(None).await.unwrap().damage, []);
}
