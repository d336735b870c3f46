//! A cache whose disk is full says so in a sentence, keeps nothing half, and goes on once there is room.

use std::fs;
use std::slice::from_ref;
use std::time::Duration;

use calve_nix::Sha256Hash;
use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;
use calve_store::cache::{GcPolicy, release_reserve};
use calve_store::remote::{Remote, RemoteError};

use crate::small_disk::SmallDisk;
use crate::support::{Served, made, noise, push};

/// Of the small disk.
const DISK_MIB: u64 = 32;
/// What is left for the index and its journal, which are not to be what fills the disk.
const ROOM_BYTES: u64 = 2 << 20;

#[tokio::test]
async fn a_push_to_a_full_disk_is_refused_in_a_sentence_and_goes_on_once_there_is_room() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(home.path().join("disk"), DISK_MIB) else { return };
    let served = Served::in_dir(&disk.0.join("cache"), Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let remote = served.remote(Some(&token));
    let before = made("before", b"there before", &[]);
    push(&remote, &[&before]).await;
    let big = made("big", &noise(6 << 20), &[]);
    let filler = disk.fill_but(ROOM_BYTES);
    let refused = remote.put_chunks(big.chunks.clone()).await.unwrap_err();
    assert!(
        matches!(&refused, RemoteError::Failed { message, .. } if message.contains("its disk is full")),
        "{refused}"
    );
    // Without its chunks it is no path.
    let manifest = big.manifest();
    assert!(remote.commit(vec![manifest], vec![big.recipe.clone()]).await.is_err());
    let missing = remote.missing_paths(&[before.info.path.clone(), big.info.path.clone()]).await.unwrap();
    assert_eq!(missing.iter().collect::<Vec<_>>(), [&big.info.path]);
    fs::remove_file(filler).unwrap();
    push(&remote, &[&big]).await;
    let verified = served.cache.verify(None).await.unwrap();
    assert!(verified.damage.is_empty() && verified.paths_broken.is_empty(), "{verified:?}");
    assert_eq!(verified.paths, 2);
}

#[tokio::test]
async fn nix_hears_that_the_disk_is_full_and_its_upload_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(home.path().join("disk"), DISK_MIB) else { return };
    let served = Served::in_dir(&disk.0.join("cache"), Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let put = async |path: &str, bytes: &[u8]| {
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        served.say([head.as_bytes(), bytes].concat()).await
    };
    let one = made("one", &noise(6 << 20), &[]);
    let url = format!("nar/{}.nar", Sha256Hash::of(&one.nar).to_base32());
    let info = &one.info;
    let narinfo = format!(
        "StorePath: {}\nURL: {url}\nCompression: none\nNarHash: {}\nNarSize: {}\nReferences: \n",
        info.path, info.nar_hash, info.nar_size
    );
    let narinfo_at = format!("/{}.narinfo", info.path.hash_part());
    // No room for the archive as it comes, and then for it alone but not for its chunks.
    for room in [ROOM_BYTES, (6 << 20) + ROOM_BYTES] {
        let filler = disk.fill_but(room);
        let mut answer = put(&format!("/{url}"), &one.nar).await;
        if answer.starts_with("HTTP/1.1 200") {
            answer = put(&narinfo_at, narinfo.as_bytes()).await;
        }
        assert!(answer.starts_with("HTTP/1.1 507") && answer.contains("its disk is full"), "{answer}");
        let missing = served.remote(Some(&token)).missing_paths(from_ref(&info.path)).await.unwrap();
        assert_eq!(missing, from_ref(&info.path));
        fs::remove_file(filler).unwrap();
    }
    assert!(put(&format!("/{url}"), &one.nar).await.starts_with("HTTP/1.1 200"));
    assert!(put(&narinfo_at, narinfo.as_bytes()).await.starts_with("HTTP/1.1 200"));
    let verified = served.cache.verify(None).await.unwrap();
    assert!(verified.damage.is_empty() && verified.paths == 1, "{verified:?}");
    assert_eq!(fs::read_dir(disk.0.join("cache/uploads")).map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn garbage_is_collected_on_a_disk_that_is_full() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(home.path().join("disk"), DISK_MIB) else { return };
    let dir = disk.0.join("cache");
    let one = made("one", &noise(6 << 20), &[]);
    {
        let served = Served::in_dir(&dir, Visibility::Private).await;
        push(&served.cache, &[&one]).await;
    }
    disk.fill_but(0);
    release_reserve(&dir);
    let served = Served::in_dir(&dir, Visibility::Private).await;
    let policy =
        GcPolicy { max_age: Some(Duration::ZERO), grace: Some(Duration::ZERO), ..GcPolicy::default() };
    let collected = served.cache.collect(&policy).await.unwrap();
    assert_eq!(collected.paths_removed, 1);
    push(&served.cache, &[&made("other", &noise(4 << 20), &[])]).await;
    assert!(served.cache.collect(&GcPolicy::default()).await.is_ok());
}
