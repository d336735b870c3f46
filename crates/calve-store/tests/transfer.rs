//! Closures pushed to a cache and pulled from it: equal, each chunk once, nothing half-valid.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use calve_nix::StorePath;
use calve_nix::sign::TrustedKeys;
use calve_store::index::LocalIndex;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::push::{PushOptions, push};
use calve_store::{Destination, TransferError};
use support::closures::Chain;
use support::memory::Memory;
use support::{Host, listing, names};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn source(cache: &Arc<Memory>) -> Source {
    Source { name: cache.key.name().to_owned(), remote: Arc::clone(cache) as _ }
}

fn trusting(caches: &[&Arc<Memory>]) -> PullOptions {
    let trusted: TrustedKeys = caches.iter().map(|cache| cache.public()).collect();
    PullOptions { trusted, destination: Some(Destination::Private), ..PullOptions::default() }
}

fn push_to(host: &Host, cache: &Arc<Memory>, root: &StorePath, options: PushOptions) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    let (remote, store) = (Arc::clone(cache) as _, Arc::clone(&host.store));
    runtime()
        .block_on(push(store, std::slice::from_ref(root), remote, options, Arc::clone(&progress)))
        .unwrap();
    progress
}

fn pull_from(
    host: &Host,
    caches: &[&Arc<Memory>],
    root: &StorePath,
    options: PullOptions,
) -> (Result<Vec<StorePath>, TransferError>, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let sources: Vec<_> = caches.iter().map(|cache| source(cache)).collect();
    let store = Arc::clone(&host.store);
    let pulled = pull(store, &sources, std::slice::from_ref(root), options, Arc::clone(&progress));
    (runtime().block_on(pulled), progress)
}

/// The pushed chain in a cache.
fn pushed() -> (Host, Chain, Arc<Memory>) {
    let host = Host::new();
    let chain = Chain::new(&host, 1);
    let cache = Arc::new(Memory::new("cache"));
    push_to(&host, &cache, &chain.program, PushOptions::default());
    (host, chain, cache)
}

fn assert_equal(from: &Host, to: &Host, chain: &Chain) {
    for path in [&chain.library, &chain.middle, &chain.program] {
        let (a, b) = (from.path("nix/store"), to.path("store"));
        assert!(listing(&a.join(path.base_name())) == listing(&b.join(path.base_name())), "{path}");
    }
    let closure = to.store.closure(std::slice::from_ref(&chain.program)).unwrap();
    assert_eq!(closure.paths.len(), 3);
    let infos = to.store.path_infos(&closure).unwrap();
    let origin = from.store.closure(std::slice::from_ref(&chain.program)).unwrap();
    for (info, origin) in infos.iter().zip(from.store.path_infos(&origin).unwrap()) {
        assert_eq!(
            (&info.path, &info.nar_hash, &info.references),
            (&origin.path, &origin.nar_hash, &origin.references)
        );
        assert_eq!(info.deriver, origin.deriver);
        assert_eq!(info.signatures.len(), 1);
    }
    assert!(names(&to.path("store/.tmp")).is_empty());
}

#[test]
fn a_closure_arrives_and_each_chunk_travels_once() {
    let (from, chain, cache) = pushed();
    let uploaded = cache.uploaded.lock().unwrap().clone();
    assert_eq!(uploaded.iter().collect::<HashSet<_>>().len(), uploaded.len());
    assert_eq!(cache.commits.load(Ordering::Relaxed), 1);
    let to = Host::new();
    let before = cache.requests.load(Ordering::Relaxed);
    let (pulled, progress) = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
    assert_eq!(pulled.unwrap(), [chain.library.clone(), chain.middle.clone(), chain.program.clone()]);
    assert_equal(&from, &to, &chain);
    let sent = cache.sent.lock().unwrap().clone();
    assert_eq!(sent.iter().collect::<HashSet<_>>().len(), sent.len());
    assert_eq!(sent.len(), uploaded.len());
    assert!(progress.chunks.get() > progress.chunks_moved.get(), "the copy in the program is not sent again");
    assert_eq!(progress.archive_bytes.get(), progress.archive_bytes_done.get());
    let requests = cache.requests.load(Ordering::Relaxed) - before;
    assert!(requests <= 10, "{requests} requests");
    let (again, _) = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
    assert!(again.unwrap().is_empty());
}

#[test]
fn what_was_pushed_is_not_pushed_again() {
    let (from, chain, cache) = pushed();
    let progress = push_to(&from, &cache, &chain.program, PushOptions::default());
    assert_eq!((progress.paths.get(), progress.paths_present.get(), progress.bytes_moved.get()), (3, 3, 0));
}

#[test]
fn a_rebuild_moves_next_to_nothing_either_way() {
    let (from, chain, cache) = pushed();
    let stored = cache.stored_bytes();
    let to = Host::new();
    let index = Arc::new(LocalIndex::open(&to.path("chunks.sqlite")).unwrap());
    let options = PullOptions { index: Some(Arc::clone(&index)), ..trusting(&[&cache]) };
    pull_from(&to, &[&cache], &chain.program, options.clone()).0.unwrap();
    let rebuilt = Chain::new(&from, 2);
    let pushed = push_to(&from, &cache, &rebuilt.program, PushOptions::default());
    assert!(pushed.bytes_moved.get() as usize <= stored / 200, "{} of {stored}", pushed.bytes_moved.get());
    let sent = cache.sent.lock().unwrap().len();
    let (pulled, progress) = pull_from(&to, &[&cache], &rebuilt.program, options.clone());
    assert_eq!(pulled.unwrap().len(), 3);
    assert_equal(&from, &to, &rebuilt);
    assert_eq!((cache.sent.lock().unwrap().len(), progress.bytes_moved.get()), (sent, 0));
    // What the index speaks of is gone: then it is fetched.
    for path in [&chain.library, &chain.middle, &chain.program, &rebuilt.program, &rebuilt.middle] {
        to.store.remove(path).unwrap();
    }
    std::fs::remove_file(to.path("store").join(rebuilt.library.base_name()).join("empty")).unwrap();
    let (pulled, progress) = pull_from(&to, &[&cache], &rebuilt.program, options);
    assert_eq!(pulled.unwrap().len(), 2);
    assert!(progress.bytes_moved.get() > 0);
}
