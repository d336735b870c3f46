//! Caches that lie, break and stall, and a process that is killed: refused by name, tried again, gone on from.

mod support;

use std::collections::{BTreeSet, HashSet};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use calve_nix::{ContentAddress, Sha256Hash, StorePath};
use calve_store::TransferError;
use calve_store::chunk::ChunkId;
use calve_store::pull::{PullOptions, pull};
use calve_store::push::{PushOptions, push};
use support::closures::{Chain, path, text};
use support::memory::{Faults, Memory};
use support::transfers::{assert_equal, pull_from, push_to, pushed, runtime, source, trusting};
use support::{Host, file, names};

/// How long the test waits for what must happen at some time.
const DEADLINE: Duration = Duration::from_secs(60);

/// When a cache counts as stalled: long enough for a sound one on a busy machine.
const STALL: Duration = Duration::from_secs(2);

/// Pulls from a cache that does something wrong; nothing may be left.
fn refused(lie: impl FnOnce(&Chain, &Memory)) -> TransferError {
    let (_from, chain, cache) = pushed();
    lie(&chain, &cache);
    let to = Host::new();
    let options = PullOptions { stall_timeout: STALL, ..trusting(&[&cache]) };
    let error = pull_from(&to, &[&cache], &chain.program, options).0.unwrap_err();
    assert!(!to.path("store").join(chain.program.base_name()).exists());
    assert!(!to.private_entries().contains(&chain.program.base_name().to_owned()));
    assert!(names(&to.path("store/.tmp")).is_empty(), "{error}");
    assert!(to.store.closure(std::slice::from_ref(&chain.program)).is_err());
    error
}

fn faulty(faults: Faults) -> TransferError {
    refused(|_, cache| *cache.faults.lock().unwrap() = faults)
}

#[test]
fn one_flipped_bit_in_a_chunk_is_named() {
    let error = faulty(Faults { flip_chunks: true, ..Faults::default() });
    assert!(matches!(&error, TransferError::Damaged { what, .. } if what.starts_with("chunk ")), "{error}");
    let error = faulty(Faults { wrong_lengths: true, ..Faults::default() });
    assert!(matches!(&error, TransferError::Damaged { what, .. } if what.starts_with("chunk ")), "{error}");
    let error = faulty(Faults { bombs: true, ..Faults::default() });
    assert!(matches!(&error, TransferError::Damaged { what, .. } if what.starts_with("chunk ")), "{error}");
    let error = faulty(Faults { truncate: true, ..Faults::default() });
    assert!(
        matches!(&error, TransferError::Damaged { message, .. } if message.contains("did not come")),
        "{error}"
    );
    let error = faulty(Faults { no_chunks: true, ..Faults::default() });
    assert!(error.to_string().contains("has no"), "{error}");
}

#[test]
fn a_stalled_cache_is_given_up() {
    let error = faulty(Faults { stall: true, ..Faults::default() });
    assert!(error.to_string().contains("sent nothing"), "{error}");
}

/// Nothing comes: then more is asked for at once than of a cache that is near.
#[test]
fn a_far_cache_is_asked_for_more_at_once() {
    let from = Host::new();
    let app = path(1, "app-1.0");
    from.package(&app, &[], |root| file(&root.join("lib/large.so"), &text(1, 40 << 20, &[]), 0o444));
    let cache = Arc::new(Memory::new("cache"));
    push_to(&from, &cache, &app, PushOptions::default());
    *cache.faults.lock().unwrap() = Faults { stall: true, ..Faults::default() };
    let before = cache.requests.load(Ordering::Relaxed);
    let (to, sources) = (Host::new(), [source(&cache)]);
    // For manifests, recipes, and at least 2 MiB each: of these, 16 MiB hold 8.
    let enough = before + 2 + 8;
    runtime().block_on(async {
        let options = PullOptions { stall_timeout: 2 * DEADLINE, ..trusting(&[&cache]) };
        let pulled =
            pull(Arc::clone(&to.store), &sources, std::slice::from_ref(&app), options, Arc::default());
        let asked = async {
            while cache.requests.load(Ordering::Relaxed) <= enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            pulled = pulled => panic!("nothing came, and the pull ended: {pulled:?}"),
            asked = tokio::time::timeout(DEADLINE, asked) => asked.expect("more is asked for"),
        }
    });
}

#[test]
fn manifests_count_only_with_a_trusted_signature() {
    let tampered = |change: fn(&mut calve_store::remote::Manifest)| {
        let error = refused(|chain, cache| cache.tamper(&chain.middle, change));
        assert!(matches!(error, TransferError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains("-middle-2.0"), "{error}");
    };
    tampered(|manifest| manifest.info.signatures.clear());
    tampered(|manifest| manifest.info.nar_size += 8);
    tampered(|manifest| manifest.info.nar_hash = Sha256Hash::of(b"another"));
    tampered(|manifest| drop(manifest.info.references.pop()));
    tampered(|manifest| {
        let signature = &mut manifest.info.signatures[0];
        let digit = if signature.ends_with("A==") { "Q==" } else { "A==" };
        signature.replace_range(signature.len() - 3.., digit);
    });
    let (_from, chain, cache) = pushed();
    let stranger = Arc::new(Memory::new("stranger"));
    let to = Host::new();
    let error = pull_from(&to, &[&cache], &chain.program, trusting(&[&stranger])).0.unwrap_err();
    assert!(matches!(error, TransferError::Untrusted { .. }), "{error}");
    assert!(error.hint().is_some());
}

/// No signature covers it, and Nix ends at one that it cannot read.
#[test]
fn a_content_address_that_is_none_or_of_another_path_is_refused() {
    let hash = Sha256Hash::of(b"").to_base32();
    for address in [format!("fixed:r:sha356:{hash}"), format!("fixed:r:sha256:{hash}")] {
        let error =
            refused(|chain, cache| cache.tamper(&chain.middle, |manifest| manifest.info.ca = Some(address)));
        let text = error.to_string();
        assert!(text.contains("-middle-2.0") && text.contains("its content address"), "{text}");
    }
}

/// A file added by its hash, as `fetchurl` makes it, with these bytes instead; without any signature.
fn addressed_file(contents: &[u8]) -> (StorePath, Arc<Memory>) {
    let address: ContentAddress = format!("fixed:{}", Sha256Hash::of(b"flat").to_nix()).parse().unwrap();
    let path = address.store_path("source.tar", &BTreeSet::new(), false).unwrap();
    let from = Host::new();
    from.package(&path, &[], |root| {
        std::fs::remove_dir(root).unwrap();
        file(root, contents, 0o444);
    });
    let cache = Arc::new(Memory::new("mirror"));
    push_to(&from, &cache, &path, PushOptions::default());
    cache.tamper(&path, |manifest| {
        manifest.info.ca = Some(address.to_string());
        manifest.info.signatures.clear();
    });
    (path, cache)
}

#[test]
fn a_file_by_its_hash_needs_no_signature_and_must_have_that_hash() {
    let nobody = || trusting(&[]);
    let (path, cache) = addressed_file(b"flat");
    assert_eq!(pull_from(&Host::new(), &[&cache], &path, nobody()).0.unwrap(), [path]);
    let (path, cache) = addressed_file(b"flap");
    let to = Host::new();
    let error = pull_from(&to, &[&cache], &path, nobody()).0.unwrap_err();
    assert!(matches!(error, TransferError::WrongAddress { .. }), "{error}");
    assert!(to.store.host_path_of(&path).is_none());
}

#[test]
fn recipes_that_are_not_what_was_signed_are_refused() {
    // Another recipe under the id of one.
    let error = refused(|_, cache| {
        for recipe in cache.recipes.lock().unwrap().values_mut() {
            recipe.pieces.swap(0, 1);
        }
    });
    assert!(matches!(&error, TransferError::Damaged { what, .. } if what.starts_with("recipe ")), "{error}");
    // A right id of another archive: larger than what was signed, or of its size.
    let error = refused(|chain, cache| {
        let other = cache.manifests.lock().unwrap()[&chain.library].recipe;
        cache.tamper(&chain.middle, |manifest| manifest.recipe = other);
    });
    assert!(error.to_string().contains("were signed"), "{error}");
    let error = refused(|chain, cache| {
        let id = cache.manifests.lock().unwrap()[&chain.middle].recipe;
        let mut recipe = cache.recipes.lock().unwrap()[&id].clone();
        let last = recipe.pieces.len() - 2;
        recipe.pieces.swap(1, last);
        cache.tamper(&chain.middle, |manifest| manifest.recipe = recipe.id());
        cache.recipes.lock().unwrap().insert(recipe.id(), recipe);
    });
    assert!(matches!(error, TransferError::WrongHash { .. } | TransferError::Archive { .. }), "{error}");
    assert!(error.to_string().contains("-middle-2.0"), "{error}");
}

#[test]
fn a_closure_without_a_reference_is_refused() {
    let error = refused(|chain, cache| drop(cache.manifests.lock().unwrap().remove(&chain.library)));
    assert!(error.to_string().contains("-library-1.0"), "{error}");
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let (from, chain, cache) = pushed();
    cache.faults.lock().unwrap().break_after = Some(5);
    let to = Host::new();
    let (pulled, progress) = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
    pulled.unwrap();
    assert_equal(&from, &to, &chain);
    assert_eq!(progress.retries.get(), 1);
    // What came before the break was not asked for again.
    let sent = cache.sent.lock().unwrap();
    assert_eq!(sent.iter().collect::<HashSet<_>>().len(), sent.len());
}

#[test]
fn the_next_cache_gives_what_the_first_cannot() {
    let (from, chain, good) = pushed();
    for faults in [
        Faults { flip_chunks: true, ..Faults::default() },
        Faults { no_chunks: true, ..Faults::default() },
        Faults { stall: true, ..Faults::default() },
    ] {
        let bad = Arc::new(Memory::new("cache"));
        push_to(&from, &bad, &chain.program, PushOptions::default());
        *bad.faults.lock().unwrap() = faults;
        let to = Host::new();
        let options = PullOptions { stall_timeout: STALL, ..trusting(&[&good]) };
        pull_from(&to, &[&bad, &good], &chain.program, options).0.unwrap();
        assert_equal(&from, &to, &chain);
    }
    let empty = Arc::new(Memory::new("empty"));
    let to = Host::new();
    pull_from(&to, &[&empty, &good], &chain.program, trusting(&[&good])).0.unwrap();
    assert_equal(&from, &to, &chain);
}

#[test]
fn a_push_goes_on_where_the_last_one_ended() {
    let from = Host::new();
    let chain = Chain::new(&from, 1);
    let cache = Arc::new(Memory::new("cache"));
    cache.faults.lock().unwrap().deny_chunks_after = Some(9);
    let pushed = push(
        Arc::clone(&from.store),
        std::slice::from_ref(&chain.program),
        Arc::clone(&cache) as _,
        PushOptions::default(),
        Arc::default(),
    );
    let error = runtime().block_on(pushed).unwrap_err();
    assert!(error.to_string().contains("does not allow that: enough"), "{error}");
    assert!(cache.manifests.lock().unwrap().is_empty());
    cache.faults.lock().unwrap().deny_chunks_after = None;
    push_to(&from, &cache, &chain.program, PushOptions::default());
    let uploaded = cache.uploaded.lock().unwrap();
    assert_eq!(uploaded.iter().collect::<HashSet<_>>().len(), uploaded.len());
    let to = Host::new();
    pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    assert_equal(&from, &to, &chain);
}

/// The chunks that only this path has.
fn own_chunks(cache: &Memory, path: &StorePath) -> HashSet<ChunkId> {
    let (manifests, recipes) = (cache.manifests.lock().unwrap(), cache.recipes.lock().unwrap());
    let chunks = |manifest: &calve_store::remote::Manifest| -> HashSet<ChunkId> {
        recipes[&manifest.recipe].pieces.iter().map(|piece| piece.id).collect()
    };
    let others: HashSet<_> =
        manifests.values().filter(|other| other.info.path != *path).flat_map(chunks).collect();
    chunks(&manifests[path]).difference(&others).copied().collect()
}

/// Where a child pulls to.
const CHILD_STORE: &str = "CALVE_TEST_PULL_INTO";

/// No test by itself: the process that is killed below.
#[test]
fn child_that_pulls_and_hangs() {
    let Some(place) = std::env::var_os(CHILD_STORE) else { return };
    let (_from, chain, cache) = pushed();
    cache.faults.lock().unwrap().hang_at = own_chunks(&cache, &chain.program);
    let mut to = Host::new();
    to.store =
        Arc::new(calve_store::Store::open_with(place.as_ref(), support::options(to.dir.path())).unwrap());
    let _ = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
    panic!("the cache did not hang");
}

#[test]
fn what_a_killed_pull_has_landed_stays() {
    let (from, chain, cache) = pushed();
    let mut to = Host::new();
    std::fs::create_dir(to.path("tmp")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_pulls_and_hangs"])
        .env(CHILD_STORE, to.path("store"))
        .env("TMPDIR", to.path("tmp"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let valid =
        |path: &StorePath| to.path("store/.valid").join(format!("{}.json", path.base_name())).exists();
    let began = Instant::now();
    while !valid(&chain.middle) {
        assert!(began.elapsed() < DEADLINE, "nothing landed");
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(valid(&chain.library) && !valid(&chain.program));
    assert!(!names(&to.path("store/.tmp")).is_empty(), "it was killed in the middle");
    to.reopen();
    assert!(names(&to.path("store/.tmp")).is_empty());
    to.store.closure(std::slice::from_ref(&chain.middle)).unwrap();
    assert!(to.store.closure(std::slice::from_ref(&chain.program)).is_err());
    let pulled = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    assert_eq!(pulled, std::slice::from_ref(&chain.program));
    assert_equal(&from, &to, &chain);
}

/// As the kernel leaves it: the tree of a path in the directory of a process that died, written up to some place.
#[test]
fn a_pull_goes_on_in_the_middle_of_a_path_that_was_cut_off() {
    let (from, chain, cache) = pushed();
    let fresh = pull_from(&Host::new(), &[&cache], &chain.program, trusting(&[&cache])).1.bytes_moved.get();
    let mut to = Host::new();
    let tree = to.path("store/.tmp/dead/tree-7");
    let whole = from.path("nix/store").join(chain.middle.base_name()).join("lib/middle.so");
    file(&tree.join("lib/middle.so"), &std::fs::read(whole).unwrap()[..900_000], 0o555);
    std::fs::write(to.path("store/.tmp/dead/tree-7.path"), chain.middle.base_name()).unwrap();
    to.reopen();
    assert_eq!(names(&to.path("store/.partial")), [chain.middle.base_name()]);
    let (pulled, progress) = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
    pulled.unwrap();
    assert_equal(&from, &to, &chain);
    let moved = progress.bytes_moved.get();
    // Half of it is in the program, too.
    assert!(moved + 100_000 < fresh, "{moved} of {fresh} bytes");
    assert!(names(&to.path("store/.partial")).is_empty());
}

/// Whatever lies there is hashed before it counts.
#[test]
fn what_was_cut_off_and_then_changed_is_fetched() {
    let (from, chain, cache) = pushed();
    let mut to = Host::new();
    let tree = to.path("store/.tmp/dead/tree-7");
    file(&tree.join("bin/program"), &vec![b'x'; 600_000], 0o555);
    std::fs::write(to.path("store/.tmp/dead/tree-7.path"), chain.program.base_name()).unwrap();
    to.reopen();
    pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    assert_equal(&from, &to, &chain);
}

#[test]
fn two_pulls_of_one_closure_at_once_both_succeed_with_one_result() {
    let (from, chain, cache) = pushed();
    let to = Host::new();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0))
            .collect();
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
    assert_equal(&from, &to, &chain);
    assert_eq!(to.private_entries().len(), 3);
}
