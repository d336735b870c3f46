//! Collecting the private store: what a machine needs stays, and so does what was used lately.

mod support;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use calve_nix::StorePath;
use calve_store::Store;
use calve_store::prune::UNUSED_DEFAULT;
use support::transfers::{pull_from, pushed, trusting};
use support::{Host, file, names};

const NEVER: Duration = Duration::from_secs(10 * 24 * 3600);

/// Makes the path look as if nobody had used it for days.
fn forget(store_root: &Path, path: &StorePath) {
    let entry = store_root.join(format!(".valid/{}.json", path.base_name()));
    File::options().append(true).open(entry).unwrap().set_modified(SystemTime::now() - NEVER).unwrap();
}

fn forget_all(host: &Host) {
    host.store.private_paths().unwrap().iter().for_each(|path| forget(&host.path("store"), path));
}

#[test]
fn what_a_machine_needs_stays_with_all_that_it_refers_to() {
    let (_from, chain, cache) = pushed();
    let to = Host::new();
    pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    file(&to.path("in/other"), b"nobody needs this", 0o644);
    let other = to.store.add(&to.path("in/other"), None).unwrap();
    // What was used today stays, needed or not.
    assert!(to.store.prune(&[], UNUSED_DEFAULT).unwrap().paths.is_empty());
    forget_all(&to);
    let pruned = to.store.prune(std::slice::from_ref(&chain.middle), UNUSED_DEFAULT).unwrap();
    let mut gone = pruned.paths.clone();
    gone.sort();
    let mut expected = vec![chain.program.clone(), other];
    expected.sort();
    assert_eq!(gone, expected);
    assert!(pruned.bytes > 0 && names(&to.path("store/.tmp")).is_empty());
    assert_eq!(to.store.closure(std::slice::from_ref(&chain.middle)).unwrap().paths.len(), 2);
    // Looked at just now, it stays; forgotten, it goes, what refers to others first.
    assert!(to.store.prune(&[], Duration::ZERO).unwrap().paths.is_empty());
    forget_all(&to);
    let pruned = to.store.prune(&[], Duration::ZERO).unwrap();
    assert_eq!(pruned.paths, [chain.middle.clone(), chain.library.clone()]);
    assert!(to.private_entries().is_empty());
    // And it comes again.
    pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    assert_eq!(to.store.closure(std::slice::from_ref(&chain.program)).unwrap().paths.len(), 3);
}

/// Whoever pulls while paths are being removed ends with a whole closure, whichever of its paths were there before.
#[test]
fn pruning_beside_pulls_leaves_each_closure_whole() {
    let (_from, chain, cache) = pushed();
    let to = Host::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open_with(&to.path("store"), support::options(to.dir.path())).unwrap();
            while !done.load(Ordering::Relaxed) {
                store.prune(&[], UNUSED_DEFAULT).unwrap();
            }
        });
        for _ in 0..20 {
            pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
            assert_eq!(to.store.closure(std::slice::from_ref(&chain.program)).unwrap().paths.len(), 3);
            // From here on it may go, from the program down.
            for path in [&chain.program, &chain.middle, &chain.library] {
                forget(&to.path("store"), path);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
