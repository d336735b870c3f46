//! Caches on the host of whoever pushes: their processes are left aside where their directories are in his hands.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;
use calve_store::cache::{Cache, CacheOptions, Storage};
use calve_store::push::{PushOptions, push};
use calve_store::remote::{Directory, Remote, RemoteError};
use calve_store::{HttpRemote, Store, at_hand};

use crate::support::{Served, made, noise, push as put};

#[tokio::test]
async fn what_is_pushed_past_its_process_is_there_at_once_and_signed_alike() {
    let served = Served::new(Visibility::Private).await;
    let http = served.remote(Some(&served.token("ci", &Right::Push)));
    let home = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&home.path().join("store")).unwrap());
    let file = home.path().join("file");
    std::fs::write(&file, noise(3 << 20)).unwrap();
    let root = store.add(&file, None).unwrap();
    let two = made("two", b"two", &[]);
    put(&http, &[&two]).await;
    let cache = at_hand(http.clone()).await;
    assert!(cache.in_process().is_some());
    let roots = [root, two.info.path.clone()];
    let pushed =
        push(store, &roots[..1], cache.clone(), PushOptions::default(), Arc::default()).await.unwrap();
    assert_eq!(pushed.len(), 1);
    // Through its process, beside what came that way.
    let manifests = http.closure(&roots).await.unwrap();
    let key = served.cache.key_name();
    assert_eq!(manifests.len(), 2);
    assert!(manifests.iter().all(|manifest| manifest.info.signatures[0].starts_with(key)), "{manifests:?}");
    assert_eq!(served.cache.verify(None).await.unwrap().damage, []);
    // Only what was made here goes unchecked.
    let mut spoilt = two.chunks[0].clone();
    spoilt.id.0[0] ^= 1;
    assert!(matches!(cache.put_chunks(vec![spoilt]).await, Err(RemoteError::Damaged { .. })));
}

#[tokio::test]
async fn who_may_not_push_is_not_told_where_the_cache_lies() {
    let served = Served::new(Visibility::Public).await;
    let pull = served.token("pull", &Right::Pull);
    for token in [None, Some("wrong"), Some(&pull[..])] {
        let remote = served.remote(token);
        assert_eq!(remote.directory().await, None);
        let remote = at_hand(remote).await;
        assert!(remote.in_process().is_none());
        let refused = remote.put_chunks(made("one", b"one", &[]).chunks).await;
        assert!(matches!(refused, Err(RemoteError::Denied { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn only_the_same_directory_is_opened_and_none_is_made() {
    let served = Served::new(Visibility::Open).await;
    let told = served.remote(None).directory().await.unwrap();
    assert_eq!(told.path, served.dir.canonicalize().unwrap());
    assert!(Cache::open_at(&told).await.unwrap().is_some());
    let (other, empty) = (Served::new(Visibility::Open).await, tempfile::tempdir().unwrap());
    for path in [other.dir.clone(), empty.path().to_owned(), empty.path().join("none")] {
        assert!(Cache::open_at(&Directory { path, ..told.clone() }).await.unwrap().is_none());
    }
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    // Another cache in the same place: its files are others.
    let moved = empty.path().join("moved");
    std::fs::rename(&told.path, &moved).unwrap();
    Cache::open(CacheOptions::local(&told.path)).await.unwrap();
    // Which is not the one that its process has open, and goes on to tell of.
    assert_eq!(served.remote(None).directory().await.unwrap(), told);
    assert!(Cache::open_at(&told).await.unwrap().is_none());
    std::fs::remove_dir_all(&told.path).unwrap();
    std::fs::rename(&moved, &told.path).unwrap();
    assert!(Cache::open_at(&told).await.unwrap().is_some());
}

#[tokio::test]
async fn a_cache_whose_objects_lie_elsewhere_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::Directory(dir.path().join("elsewhere"));
    let options = CacheOptions { storage, ..CacheOptions::local(&dir.path().join("cache")) };
    assert_eq!(Cache::open(options).await.unwrap().directory(), None);
}

#[tokio::test]
async fn a_cache_that_does_not_know_the_question_is_asked_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let remote = at_hand(HttpRemote::new(url.parse().unwrap(), None).unwrap()).await;
    assert!(remote.in_process().is_none());
    assert!(answering.await.unwrap().starts_with("POST /calve/v1/directory "));
}
