//! Garbage collection and repair.
#![cfg(feature = "cache")]

mod cache_support;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cache_support::*;
use calve_store::cache::{Cache, CacheOptions, GRACE, GcPolicy, PACK_BYTES};
use calve_store::remote::{Remote, RemoteError};

/// Everything that is not pinned goes.
fn nothing_stays() -> GcPolicy {
    GcPolicy { max_age: Some(Duration::ZERO), ..GcPolicy::default() }
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.join("objects/packs")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let list = if entry.path().is_dir() { &mut open } else { &mut found };
            list.push(entry.path());
        }
    }
    found.sort_unstable();
    found
}

/// Waits until what was written before counts as old: times are kept in milliseconds.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

#[tokio::test]
async fn pins_keep_a_closure_and_the_rest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let (kept, dead) = (closure(1), made("dead", 1, 2_000_000, &[&path("libc", 1)]));
    push(&cache, &kept).await.unwrap();
    push(&cache, std::slice::from_ref(&dead)).await.unwrap();
    cache.pin("fleet", &kept[2].info.path, None).await.unwrap();
    cache.pin("old", &dead.info.path, Some(1)).await.unwrap();
    assert!(cache.pin("x", &path("unknown", 1), None).await.is_err());
    a_moment().await;
    let would = cache.collect(&GcPolicy { dry_run: true, ..nothing_stays() }).await.unwrap();
    assert_intact(&cache, std::slice::from_ref(&dead)).await;
    a_moment().await;
    let did = cache.collect(&nothing_stays()).await.unwrap();
    assert_eq!((did.paths_kept, did.paths_removed), (3, 1));
    assert_eq!((did.paths_removed, did.chunks_removed), (would.paths_removed, would.chunks_removed));
    assert!(did.chunk_bytes_removed > 1_900_000 && did.packs_removed >= 2, "{did:?}");
    assert_intact(&cache, &kept).await;
    assert_eq!(cache.find(dead.info.path.hash_part()).await.unwrap(), None);
    cache.unpin("fleet").await.unwrap();
    a_moment().await;
    assert_eq!(cache.collect(&nothing_stays()).await.unwrap().paths_removed, 3);
    assert_eq!(objects(dir.path()), Vec::<PathBuf>::new());
    push(&cache, &kept).await.unwrap();
    assert_intact(&cache, &kept).await;
}

#[tokio::test]
async fn age_and_size_take_the_least_recently_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let mut all = Vec::new();
    for (build, name) in (1..).zip(["one", "two", "three"]) {
        all.push(made(name, build, 1_000_000, &[]));
        push(&cache, &all[all.len() - 1..]).await.unwrap();
        a_moment().await;
    }
    let keep = GcPolicy { max_age: Some(Duration::from_secs(3600)), ..GcPolicy::default() };
    assert_eq!(cache.collect(&keep).await.unwrap().paths_removed, 0);
    assert_intact(&cache, &all[..1]).await;
    a_moment().await;
    let policy = GcPolicy { max_bytes: Some(2_200_000), ..GcPolicy::default() };
    assert_eq!(cache.collect(&policy).await.unwrap().paths_removed, 1);
    assert_eq!(cache.find(all[1].info.path.hash_part()).await.unwrap(), None, "used longest ago");
    assert_intact(&cache, &[all[0].clone(), all[2].clone()]).await;
}

#[tokio::test]
async fn what_is_within_the_grace_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheOptions { grace: GRACE, ..options(dir.path()) }).await.unwrap();
    let paths = closure(1);
    let (_, stored) = chunks(&made("unfinished", 1, 500_000, &[]));
    let ids: Vec<_> = stored.iter().map(|chunk| chunk.id).collect();
    cache.put_chunks(stored).await.unwrap();
    push(&cache, &paths).await.unwrap();
    for name in ["abandoned", "half#1"] {
        let file = std::fs::File::create(dir.path().join("objects/packs").join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    }
    let done = cache.collect(&nothing_stays()).await.unwrap();
    assert_eq!((done.paths_removed, done.chunks_removed, done.abandoned_removed), (0, 0, 0));
    assert_eq!(cache.missing_chunks(&ids).await.unwrap(), []);
    a_moment().await;
    let policy = GcPolicy { grace: Some(Duration::ZERO), ..GcPolicy::default() };
    let done = cache.collect(&policy).await.unwrap();
    assert_eq!((done.paths_removed, done.abandoned_removed), (0, 2));
    assert_eq!(cache.missing_chunks(&ids).await.unwrap(), ids);
    assert_intact(&cache, &paths).await;
}

#[tokio::test]
async fn small_packs_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let mut all = Vec::new();
    for build in 0..10 {
        all.push(made(&format!("small{build}"), build, 30_000, &[]));
        push(&cache, &all[all.len() - 1..]).await.unwrap();
    }
    assert_eq!(objects(dir.path()).len(), 20);
    a_moment().await;
    cache.collect(&GcPolicy::default()).await.unwrap();
    assert_eq!(objects(dir.path()).len(), 1);
    a_moment().await;
    assert_eq!(cache.collect(&GcPolicy::default()).await.unwrap().packs_removed, 0, "at rest");
    assert_intact(&cache, &all).await;
    assert!(std::fs::metadata(&objects(dir.path())[0]).unwrap().len() < PACK_BYTES as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn collecting_beside_pushes_and_reads_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, collector) = (local(dir.path()).await, local(dir.path()).await);
    let pushing = tokio::spawn(async move {
        for build in 0..8 {
            let paths =
                [made("shared", build, 300_000, &[]), made(&format!("own{build}"), build, 90_000, &[])];
            // Without a grace chunks may go before they are committed; a client asks again then.
            let mut tries = 0;
            while let Err(error) = push(&writer, &paths).await {
                assert!(matches!(error, RemoteError::Missing { .. }) && tries < 100, "{error}");
                tries += 1;
            }
            assert_intact(&writer, &paths).await;
        }
    });
    // Mostly with a grace: without any, again and again, a slow push would never come to its end.
    for grace in [0, 100, 100, 100].into_iter().map(Duration::from_millis).cycle() {
        if pushing.is_finished() {
            break;
        }
        collector.collect(&GcPolicy { grace: Some(grace), ..GcPolicy::default() }).await.unwrap();
    }
    pushing.await.unwrap();
    assert_eq!(collector.verify(None).await.unwrap().damage, []);
}

#[tokio::test]
async fn every_flipped_byte_is_found_and_repaired_from_another_cache() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let paths: Vec<_> = vec![made("a", 1, 40_000, &[]), made("b", 1, 60_000, &[&path("a", 1)])];
    let (cache, other) = (local(dirs[0].path()).await, local(dirs[1].path()).await);
    push(&cache, &paths).await.unwrap();
    push(&other, &paths).await.unwrap();
    assert_eq!(cache.verify(None).await.unwrap().damage, []);
    for round in 0..24 {
        let objects = objects(dirs[0].path());
        let object = &objects[round % objects.len()];
        let mut bytes = std::fs::read(object).unwrap();
        let at = (round * 7919 + 5) % bytes.len();
        bytes[at] ^= 1 << (round % 8);
        std::fs::write(object, &bytes).unwrap();
        let found = cache.verify(Some(&other)).await.unwrap();
        assert!(!found.damage.is_empty(), "byte {at} of {}", object.display());
        assert!(found.damage.iter().all(|damage| damage.repaired), "{:?}", found.damage);
        let name = object.file_name().unwrap().to_str().unwrap();
        assert!(found.damage.iter().all(|damage| damage.object.contains(name)));
        assert_eq!(found.paths_broken, []);
        assert_eq!(cache.verify(None).await.unwrap().damage, []);
        assert_intact(&cache, &paths).await;
    }
}

/// An index that is as it was before, or has lost rows, is whole to SQLite.
#[tokio::test]
async fn what_a_damaged_index_forgot_is_found_in_the_packs_before_anything_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (closure(1), vec![made("other", 1, 300_000, &[&path("libc", 1)])]);
    let files = ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"];
    let before = tempfile::tempdir().unwrap();
    push(&local(dir.path()).await, &first).await.unwrap();
    for name in files {
        let _ = std::fs::copy(dir.path().join(name), before.path().join(name));
    }
    push(&local(dir.path()).await, &second).await.unwrap();
    let roll_back = || {
        for name in files {
            let _ = std::fs::remove_file(dir.path().join(name));
            let _ = std::fs::copy(before.path().join(name), dir.path().join(name));
        }
    };
    let forget = || {
        let index = rusqlite::Connection::open(dir.path().join(files[0])).unwrap();
        index.execute_batch("DELETE FROM paths; DELETE FROM refs;").unwrap();
    };
    for damage in [&roll_back as &dyn Fn(), &forget] {
        for collects in [false, true] {
            damage();
            let cache = local(dir.path()).await;
            assert_eq!(cache.find(second[0].info.path.hash_part()).await.unwrap(), None);
            if collects {
                a_moment().await;
                let done = cache.collect(&GcPolicy::default()).await.unwrap();
                assert!(done.paths_restored > 0 && done.paths_removed == 0, "{done:?}");
            } else {
                let found = cache.verify(None).await.unwrap();
                assert!(found.paths_restored > 0 && found.damage.is_empty(), "{found:?}");
                assert_eq!(found.paths, 4);
            }
            assert_eq!(cache.verify(None).await.unwrap().damage, []);
            assert_intact(&cache, &first).await;
            assert_intact(&cache, &second).await;
        }
    }
}

/// What a first look found and could not mend is still known to the next, and mended when there is another cache.
#[tokio::test]
async fn what_was_found_broken_stays_known_until_another_cache_makes_it_whole() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (cache, other) = (local(dirs[0].path()).await, local(dirs[1].path()).await);
    let paths = closure(1);
    push(&cache, &paths).await.unwrap();
    push(&other, &paths).await.unwrap();
    for object in objects(dirs[0].path()) {
        let mut bytes = std::fs::read(&object).unwrap();
        let end = bytes.len() * 3 / 4;
        bytes[40..end].iter_mut().step_by(5000).for_each(|byte| *byte ^= 0x40);
        std::fs::write(&object, bytes).unwrap();
    }
    let first = cache.verify(None).await.unwrap();
    assert!(!first.paths_broken.is_empty());
    let second = cache.verify(None).await.unwrap();
    assert_eq!((second.damage, second.paths_broken), (vec![], first.paths_broken.clone()));
    let mended = cache.verify(Some(&other)).await.unwrap();
    assert_eq!(mended.paths_broken, []);
    assert_eq!(mended.damage.len(), first.paths_broken.len());
    assert!(mended.damage.iter().all(|damage| damage.repaired), "{:?}", mended.damage);
    assert_intact(&cache, &paths).await;
    assert_eq!(cache.verify(None).await.unwrap().damage, []);
}

#[tokio::test]
async fn damage_without_another_cache_is_healed_by_a_push() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let paths = closure(1);
    push(&cache, &paths).await.unwrap();
    for object in objects(dir.path()) {
        let mut bytes = std::fs::read(&object).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        std::fs::write(&object, bytes).unwrap();
    }
    let found = cache.verify(None).await.unwrap();
    assert!(found.damage.iter().any(|damage| damage.what.starts_with("chunk ") && !damage.repaired));
    assert!(!found.paths_broken.is_empty());
    let broken: HashSet<_> = found.paths_broken.iter().cloned().collect();
    let wanted: Vec<_> = paths.iter().map(|made| made.info.path.clone()).collect();
    let missing: HashSet<_> = cache.missing_paths(&wanted).await.unwrap().into_iter().collect();
    assert_eq!(missing, broken);
    push(&cache, &paths).await.unwrap();
    assert_intact(&cache, &paths).await;
    let again = cache.verify(None).await.unwrap();
    assert_eq!((again.damage, again.paths_broken), (vec![], vec![]));
    // A pack that is gone altogether.
    std::fs::remove_file(&objects(dir.path())[0]).unwrap();
    assert!(!cache.verify(None).await.unwrap().damage.is_empty());
    push(&cache, &paths).await.unwrap();
    assert_intact(&cache, &paths).await;
}
