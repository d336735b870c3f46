use calve_server::cache::Visibility;
use calve_store::remote::Remote;
use tokio::net::TcpListener;

use crate::support::{Served, made, noise, path, push};

#[tokio::test]
async fn what_is_missing_comes_from_upstream_once_and_stays() {
    let upstream = Served::new(Visibility::Public).await;
    let below = made("below", &noise(300_000), &[]);
    let above = made("above", b"see ", &[&below]);
    push(&upstream.cache, &[&below, &above]).await;
    let key = upstream.cache.public_keys().remove(0);
    // Accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let served = Served::with_upstreams(Visibility::Public, &[&silent_url, &upstream.url()], &key).await;

    let narinfo = served.get(&format!("/{}.narinfo", above.info.path.hash_part()), "").await;
    assert!(narinfo.starts_with("HTTP/1.1 200"), "{narinfo}");
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    let remote = served.remote(None);
    let url = format!("/{url}");
    let (one, two) =
        tokio::join!(served.get(&url, ""), remote.closure(std::slice::from_ref(&above.info.path)));
    assert!(one.starts_with("HTTP/1.1 200"), "{one}");
    assert_eq!(two.unwrap().len(), 2);
    drop(upstream);
    assert_eq!(served.cache.closure(std::slice::from_ref(&above.info.path)).await.unwrap().len(), 2);
    assert!(remote.closure(&[path("none")]).await.is_err());
}

#[tokio::test]
async fn what_a_stranger_signed_is_not_there() {
    let upstream = Served::new(Visibility::Public).await;
    let one = made("one", b"one", &[]);
    push(&upstream.cache, &[&one]).await;
    let stranger = Served::new(Visibility::Public).await;
    let other_key = stranger.cache.public_keys().remove(0);
    let served = Served::with_upstreams(Visibility::Public, &[&upstream.url()], &other_key).await;
    let answer = served.get(&format!("/{}.narinfo", one.info.path.hash_part()), "").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(served.remote(None).closure(std::slice::from_ref(&one.info.path)).await.is_err());
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_not_one_that_lacks_the_path() {
    let upstream = Served::new(Visibility::Public).await;
    let one = made("one", b"one", &[]);
    push(&upstream.cache, &[&one]).await;
    let key = upstream.cache.public_keys().remove(0);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone_url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let served = Served::with_upstreams(Visibility::Public, &[&gone_url, &upstream.url()], &key).await;
    let known = served.get(&format!("/{}.narinfo", one.info.path.hash_part()), "").await;
    assert!(known.starts_with("HTTP/1.1 200"), "{known}");
    // Twice: also while it is left alone.
    for _ in 0..2 {
        let unknown = served.get(&format!("/{}.narinfo", path("none").hash_part()), "").await;
        assert!(unknown.starts_with("HTTP/1.1 502") && unknown.contains(&gone_url), "{unknown}");
    }
}
