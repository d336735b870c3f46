//! Closures pushed to a cache and pulled from it: equal, each chunk once, nothing half-valid.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use calve_nix::StorePath;
use calve_nix::sign::{SecretKey, TrustedKeys};
use calve_store::Destination;
use calve_store::cache::{Cache, CacheOptions};
use calve_store::index::LocalIndex;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::push::{PushOptions, push};
use calve_store::remote::Remote;
use support::closures::{Chain, path, text};
use support::memory::Memory;
use support::transfers::{assert_equal, pull_from, push_to, pushed, runtime, spoil, trusting};
use support::{Host, file, listing};

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

/// The hash of the whole archive tells, and then each chunk that lies here is looked at.
#[test]
fn what_lies_here_and_was_changed_is_fetched() {
    let (from, chain, cache) = pushed();
    let to = Host::new();
    let index = Arc::new(LocalIndex::open(&to.path("chunks.sqlite")).unwrap());
    let options = PullOptions { index: Some(index), ..trusting(&[&cache]) };
    pull_from(&to, &[&cache], &chain.program, options.clone()).0.unwrap();
    spoil(&to.path("store").join(chain.middle.base_name()).join("lib/middle.so"), 500_000);
    let rebuilt = Chain::new(&from, 2);
    push_to(&from, &cache, &rebuilt.program, PushOptions::default());
    let (pulled, progress) = pull_from(&to, &[&cache], &rebuilt.program, options);
    pulled.unwrap();
    assert_equal(&from, &to, &rebuilt);
    // One chunk, and what is unpacked twice is counted once.
    assert_eq!(progress.chunks_moved.get(), 1);
    assert_eq!(progress.archive_bytes.get(), progress.archive_bytes_done.get());
}

#[test]
fn the_real_cache_takes_and_gives_a_closure() {
    let (from, to) = (Host::new(), Host::new());
    let chain = Chain::new(&from, 1);
    runtime().block_on(async {
        let cache = Cache::open(CacheOptions::local(&from.path("cache"))).await.unwrap();
        let trusted: TrustedKeys = cache.public_keys().join(" ").parse().unwrap();
        let remote: Arc<dyn Remote> = Arc::new(cache);
        let roots = std::slice::from_ref(&chain.program);
        let pushed =
            push(Arc::clone(&from.store), roots, Arc::clone(&remote), PushOptions::default(), Arc::default());
        assert_eq!(pushed.await.unwrap().len(), 3);
        let options =
            PullOptions { destination: Some(Destination::Private), trusted, ..PullOptions::default() };
        let sources = [Source { name: "cache".to_owned(), remote: Arc::clone(&remote) }];
        let pulled = pull(Arc::clone(&to.store), &sources, roots, options, Arc::default());
        assert_eq!(pulled.await.unwrap().len(), 3);
        // A rebuild: its chunks are all there.
        let rebuilt = Chain::new(&from, 2);
        let progress = Arc::new(Progress::default());
        let roots = std::slice::from_ref(&rebuilt.program);
        let pushed =
            push(Arc::clone(&from.store), roots, remote, PushOptions::default(), Arc::clone(&progress));
        assert_eq!(pushed.await.unwrap().len(), 3);
        assert_eq!(progress.bytes_moved.get(), 0);
    });
    assert_equal(&from, &to, &chain);
}

/// The file is so large that what lies here is read ahead.
#[test]
fn a_change_in_one_file_moves_that_file() {
    let (from, to) = (Host::new(), Host::new());
    let cache = Arc::new(Memory::new("cache"));
    let app = |generation: u64, notes: &[u8]| {
        let app = path(generation, "app-1.0");
        from.package(&app, &[&app], |root| {
            file(&root.join("lib/large.so"), &text(5, 6_000_000, &[&app]), 0o444);
            file(&root.join("share/notes"), notes, 0o444);
        });
        app
    };
    let index = Arc::new(LocalIndex::open(&to.path("chunks.sqlite")).unwrap());
    let options = PullOptions { index: Some(index), ..trusting(&[&cache]) };
    // The bytes that were pushed and pulled.
    let moved = |app: &StorePath| {
        let pushed = push_to(&from, &cache, app, PushOptions::default());
        let (paths, pulled) = pull_from(&to, &[&cache], app, options.clone());
        assert_eq!(paths.unwrap(), std::slice::from_ref(app));
        let (there, here) = (from.path("nix/store"), to.path("store"));
        assert_eq!(listing(&there.join(app.base_name())), listing(&here.join(app.base_name())));
        [pushed.bytes_moved.get(), pulled.bytes_moved.get()]
    };
    let [first, _] = moved(&app(1, b"a few words"));
    let changed = app(2, &text(6, 5000, &[]));
    // The chunk around the change, which is at most 256 KiB, and the recipe.
    for moved in moved(&changed) {
        assert!(moved > 0 && moved < first / 8, "{moved} of {first}");
    }
    // What lies here is not what it was: one chunk more, and those again that came beside the wrong one.
    spoil(&to.path("store").join(changed.base_name()).join("lib/large.so"), 3_000_000);
    let [pushed, pulled] = moved(&app(3, &text(7, 5000, &[])));
    assert!(pulled > pushed && pulled < first / 4, "{pulled} and {pushed} of {first}");
}

#[test]
fn whoever_pushes_may_sign() {
    let from = Host::new();
    let chain = Chain::new(&from, 1);
    let cache = Arc::new(Memory::new("cache"));
    let key = Arc::new(SecretKey::from_seed("mine", [9; 32]).unwrap());
    let index = Arc::new(LocalIndex::open(&from.path("chunks.sqlite")).unwrap());
    let options = PushOptions { key: Some(Arc::clone(&key)), index: Some(index), ..PushOptions::default() };
    push_to(&from, &cache, &chain.program, options.clone());
    let to = Host::new();
    let trusted = std::iter::once(key.public()).collect();
    pull_from(&to, &[&cache], &chain.program, PullOptions { trusted, ..trusting(&[]) }).0.unwrap();
    // To another cache nothing is cut again; the chunks are read where they lie.
    let other = Arc::new(Memory::new("other"));
    push_to(&from, &other, &chain.program, options);
    let again = Host::new();
    pull_from(&again, &[&other], &chain.program, trusting(&[&other])).0.unwrap();
    assert_eq!(other.stored_bytes(), cache.stored_bytes());
}
