//! Caches on the host of whoever pushes or pulls: their processes are left aside where their directories are in his hands.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;
use calve_store::cache::{Cache, CacheOptions, Storage};
use calve_store::chunk::StoredChunk;
use calve_store::push::{PushOptions, push};
use calve_store::remote::{Asker, Directory, Remote, RemoteError};
use calve_store::{HttpRemote, Store, at_hand_to_pull, at_hand_to_push};
use futures_util::TryStreamExt;

use crate::support::{Made, Served, made, noise, path, push as put};

/// Where a cache says that it lies to this process, which wants to push.
async fn told(remote: &HttpRemote) -> Option<Directory> {
    remote.directory(&Cache::asker(true).unwrap()).await
}

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
    let cache = at_hand_to_push(http.clone()).await;
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
        assert_eq!(told(&remote).await, None);
        let remote = at_hand_to_push(remote).await;
        assert!(remote.in_process().is_none());
        let refused = remote.put_chunks(made("one", b"one", &[]).chunks).await;
        assert!(matches!(refused, Err(RemoteError::Denied { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn what_is_pulled_is_read_where_it_lies() {
    let upstream = Served::new(Visibility::Public).await;
    let (below, above) = (made("below", &noise(300_000), &[]), made("above", b"above", &[]));
    put(&upstream.cache, &[&below]).await;
    let key = upstream.cache.public_keys().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let served = Served::open(dir.path(), Visibility::Public, &[&upstream.url()], &key).await;
    put(&served.cache, &[&above]).await;
    let cache = at_hand_to_pull(served.remote(None)).await;
    // What is not there its process gets, and what nobody has it says.
    let of = |made: &Made| [made.info.path.clone()];
    assert_eq!(cache.closure(&of(&below)).await.unwrap().len(), 1);
    assert!(matches!(cache.closure(&[path("none")]).await, Err(RemoteError::Missing { .. })));
    let two = made("two", b"two", &[]);
    let refused = cache.put_chunks(two.chunks.clone()).await;
    assert!(matches!(refused, Err(RemoteError::Denied { .. })), "{refused:?}");
    let refused = cache.commit(vec![two.manifest()], vec![two.recipe.clone()]).await;
    assert!(matches!(refused, Err(RemoteError::Denied { .. })), "{refused:?}");
    let addr = served.addr.clone();
    drop((upstream, served));
    while TcpStream::connect(&addr).is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Nobody answers any more.
    for made in [&below, &above] {
        let manifests = cache.closure(&of(made)).await.unwrap();
        assert_eq!(cache.recipes(&[manifests[0].recipe]).await.unwrap(), std::slice::from_ref(&made.recipe));
        let ids: Vec<_> = made.chunks.iter().map(|chunk| chunk.id).collect();
        let chunks: Vec<_> = cache.chunks(ids).await.unwrap().try_collect().await.unwrap();
        let plain = |chunks: &[StoredChunk]| -> Vec<_> {
            chunks.iter().map(|chunk| chunk.plain().unwrap()).collect()
        };
        assert_eq!(plain(&chunks), plain(&made.chunks));
    }
    let unreachable = cache.closure(&[path("none")]).await;
    assert!(matches!(unreachable, Err(RemoteError::Unreachable { .. })), "{unreachable:?}");
}

#[tokio::test]
async fn where_a_cache_lies_is_told_to_its_own_user_on_its_own_host_who_may_pull() {
    let served = Served::new(Visibility::Private).await;
    let one = made("one", b"one", &[]);
    put(&served.cache, &[&one]).await;
    let of_one = served.token("one", &Right::Closure(vec![one.info.path.clone()]));
    let (pull, asker) = (served.token("pull", &Right::Pull), Cache::asker(false).unwrap());
    let told = async |token, asker| served.remote(token).directory(asker).await;
    assert!(told(Some(&pull[..]), &asker).await.is_some());
    for token in [None, Some("wrong"), Some(&of_one[..])] {
        assert_eq!(told(token, &asker).await, None);
        assert!(at_hand_to_pull(served.remote(token)).await.in_process().is_none());
    }
    // Another user, host or version.
    let mut other = asker.clone();
    other.mark[0] ^= 1;
    assert_eq!(told(Some(&pull[..]), &other).await, None);
    assert_eq!(told(Some(&pull[..]), &Asker { pushes: true, ..asker }).await, None);
}

#[tokio::test]
async fn only_the_same_directory_is_opened_and_none_is_made() {
    let served = Served::new(Visibility::Open).await;
    let first = told(&served.remote(None)).await.unwrap();
    assert_eq!(first.path, served.dir.canonicalize().unwrap());
    assert!(Cache::open_at(&first, "c").await.unwrap().is_some());
    let (other, empty) = (Served::new(Visibility::Open).await, tempfile::tempdir().unwrap());
    for path in [other.dir.clone(), empty.path().to_owned(), empty.path().join("none")] {
        assert!(Cache::open_at(&Directory { path, ..first.clone() }, "c").await.unwrap().is_none());
    }
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    // Another cache in the same place: its files are others.
    let moved = empty.path().join("moved");
    std::fs::rename(&first.path, &moved).unwrap();
    Cache::open(CacheOptions::local(&first.path)).await.unwrap();
    // Which is not the one that its process has open, and goes on to tell of.
    assert_eq!(told(&served.remote(None)).await.unwrap(), first);
    assert!(Cache::open_at(&first, "c").await.unwrap().is_none());
    std::fs::remove_dir_all(&first.path).unwrap();
    std::fs::rename(&moved, &first.path).unwrap();
    assert!(Cache::open_at(&first, "c").await.unwrap().is_some());
}

#[tokio::test]
async fn a_cache_whose_objects_lie_elsewhere_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::Directory(dir.path().join("elsewhere"));
    let options = CacheOptions { storage, ..CacheOptions::local(&dir.path().join("cache")) };
    let asker = Cache::asker(false).unwrap();
    assert_eq!(Cache::open(options).await.unwrap().directory(&asker), None);
    assert!(Cache::open(CacheOptions::local(dir.path())).await.unwrap().directory(&asker).is_some());
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
    let remote = at_hand_to_push(HttpRemote::new(url.parse().unwrap(), None).unwrap()).await;
    assert!(remote.in_process().is_none());
    assert!(answering.await.unwrap().starts_with("POST /calve/v1/directory "));
}
