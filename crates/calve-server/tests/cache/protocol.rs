use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;
use calve_store::chunk::ChunkId;
use calve_store::remote::{ArchivePart, Manifest, Remote, RemoteError};
use futures_util::TryStreamExt;

use crate::support::{Served, made, noise, path, push};

#[tokio::test]
async fn a_closure_goes_there_and_back() {
    let served = Served::new(Visibility::Private).await;
    let remote = served.remote(Some(&served.token("ci", &Right::Push)));
    let below = made("below", &noise(600_000), &[]);
    let above = made("above", b"see ", &[&below]);
    let (a, b) = (above.info.path.clone(), below.info.path.clone());

    assert_eq!(remote.missing_paths(&[a.clone(), b.clone()]).await.unwrap(), [a.clone(), b.clone()]);
    let ids: Vec<ChunkId> = below.chunks.iter().map(|chunk| chunk.id).collect();
    assert!(ids.len() > 2);
    assert_eq!(remote.missing_chunks(&ids).await.unwrap(), ids);
    push(&remote, &[&below, &above]).await;
    assert_eq!(remote.missing_paths(&[a.clone(), path("none"), b]).await.unwrap(), [path("none")]);
    assert!(remote.missing_chunks(&ids).await.unwrap().is_empty());

    let manifests = remote.closure(std::slice::from_ref(&a)).await.unwrap();
    assert_eq!(manifests.len(), 2);
    let key = &remote.info().await.unwrap().keys[0];
    let name = key.split_once(':').unwrap().0;
    assert!(manifests.iter().all(|manifest| manifest.info.signatures[0].starts_with(name)));
    let manifest = manifests.iter().find(|manifest| manifest.info.path == below.info.path).unwrap();
    let recipes = remote.recipes(&[manifest.recipe]).await.unwrap();
    assert_eq!(recipes, [below.recipe]);
    // Several times over the same connections, whole and in order.
    for _ in 0..3 {
        let chunks: Vec<_> = remote.chunks(ids.clone()).await.unwrap().try_collect().await.unwrap();
        assert_eq!(chunks.iter().map(|chunk| chunk.id).collect::<Vec<_>>(), ids);
        assert!(chunks.iter().all(|chunk| chunk.plain().is_ok()));
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_same_words_as_without_http() {
    let served = Served::new(Visibility::Private).await;
    let remote = served.remote(Some(&served.token("ci", &Right::Push)));
    let one = made("one", b"one", &[]);
    let missing = remote.closure(&[path("none")]).await.unwrap_err();
    assert!(matches!(&missing, RemoteError::Missing { what, .. } if what.contains("-none")), "{missing}");
    let missing: Result<Vec<_>, _> = remote.chunks(vec![ChunkId([1; 32])]).await.unwrap().try_collect().await;
    assert!(matches!(missing, Err(RemoteError::Missing { .. })), "{missing:?}");
    remote.put_chunks(one.chunks.clone()).await.unwrap();
    let mut info = one.info.clone();
    info.nar_hash = calve_nix::Sha256Hash::of(b"another");
    let manifest = Manifest { info, recipe: one.recipe.id(), lazy: None };
    let damaged = remote.commit(vec![manifest], vec![one.recipe.clone()]).await.unwrap_err();
    assert!(matches!(&damaged, RemoteError::Damaged { what, .. } if what.contains("-one")), "{damaged}");
    let mut spoilt = one.chunks[0].clone();
    spoilt.id = ChunkId([7; 32]);
    assert!(matches!(remote.put_chunks(vec![spoilt]).await, Err(RemoteError::Damaged { .. })));
    assert_eq!(remote.missing_paths(std::slice::from_ref(&one.info.path)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn tokens_open_what_they_say_and_denial_tells_nothing() {
    let served = Served::new(Visibility::Private).await;
    let pusher = served.remote(Some(&served.token("push", &Right::Push)));
    let (one, two) = (made("one", b"one", &[]), made("two", b"two", &[]));
    push(&pusher, &[&one, &two]).await;
    let (first, second) = (one.info.path.clone(), two.info.path.clone());

    let puller = served.remote(Some(&served.token("pull", &Right::Pull)));
    assert_eq!(puller.closure(std::slice::from_ref(&first)).await.unwrap().len(), 1);
    assert!(matches!(puller.put_chunks(one.chunks.clone()).await, Err(RemoteError::Denied { .. })));

    let narrow = served.remote(Some(&served.token("one", &Right::Closure(vec![first.clone()]))));
    assert_eq!(narrow.closure(std::slice::from_ref(&first)).await.unwrap().len(), 1);
    let hidden = narrow.closure(std::slice::from_ref(&second)).await.unwrap_err().to_string();
    let absent = narrow.closure(&[path("none")]).await.unwrap_err().to_string();
    assert_eq!(hidden.replace(&second.to_string(), ""), absent.replace(&path("none").to_string(), ""));
    let lacking = narrow.missing_paths(&[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(lacking, std::slice::from_ref(&second));
    assert!(matches!(narrow.chunks(vec![two.chunks[0].id]).await, Err(RemoteError::Missing { .. })));
    assert!(narrow.chunks(vec![one.chunks[0].id]).await.is_ok());

    for token in [None, Some("calve_wrong")] {
        let nobody = served.remote(token);
        let there = nobody.closure(std::slice::from_ref(&first)).await.unwrap_err();
        let absent = nobody.closure(&[path("none")]).await.unwrap_err();
        assert!(matches!(there, RemoteError::Denied { .. }));
        assert_eq!(there.to_string(), absent.to_string());
    }
    let open = Served::new(Visibility::Public).await;
    assert!(open.remote(None).info().await.is_ok());
    assert!(matches!(
        open.remote(None).put_chunks(one.chunks.clone()).await,
        Err(RemoteError::Denied { .. })
    ));
}

/// A push of a path of some size: its commit finds it hashed, or does that itself where the cache would not do it ahead.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_hashed_while_it_is_pushed() {
    let served = Served::new(Visibility::Private).await;
    let remote = served.remote(Some(&served.token("ci", &Right::Push)));
    let below = made("below", &noise(700_000), &[]);
    let mut contents = noise(600_000);
    contents[300_000..300_032].copy_from_slice(below.info.path.hash_part().as_bytes());
    let above = made("above", &contents, &[&below]);
    for made in [&below, &above] {
        remote.put_chunks(made.chunks.clone()).await.unwrap();
        let (give, take) = tokio::sync::mpsc::channel(1);
        let telling = async {
            let mut positions = made.recipe.positions.clone();
            for pieces in made.recipe.pieces.chunks(2) {
                let part = ArchivePart { pieces: pieces.to_vec(), positions: std::mem::take(&mut positions) };
                give.send(part).await.unwrap();
            }
            drop(give);
        };
        let (hashed, ()) = tokio::join!(remote.hash_ahead(made.info.clone(), take), telling);
        hashed.unwrap();
        let manifest = made.manifest();
        remote.commit(vec![manifest], vec![made.recipe.clone()]).await.unwrap();
    }
    assert!(!above.recipe.positions.is_empty());
    // A refusal in the middle is told in the cache's own words.
    let other = made("other", &noise(400_000), &[]);
    let (give, take) = tokio::sync::mpsc::channel(1);
    let part = ArchivePart { pieces: other.recipe.pieces.clone(), positions: Vec::new() };
    give.send(part).await.unwrap();
    let refused = remote.hash_ahead(other.info.clone(), take).await.unwrap_err();
    assert!(matches!(&refused, RemoteError::Missing { what, .. } if what.starts_with("chunk ")), "{refused}");
}
