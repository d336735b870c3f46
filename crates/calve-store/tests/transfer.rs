//! Closures pushed to a cache and pulled from it: equal, each chunk once, nothing half-valid.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use calve_store::index::LocalIndex;
use calve_store::pull::PullOptions;
use calve_store::push::PushOptions;
use support::Host;
use support::closures::Chain;
use support::transfers::{assert_equal, pull_from, push_to, pushed, trusting};

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
