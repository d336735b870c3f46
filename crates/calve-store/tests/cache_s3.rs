//! The engine on an S3 server.
#![cfg(feature = "cache")]

mod cache_support;

use std::path::Path;
use std::time::Duration;

use cache_support::*;
use calve_store::cache::{Cache, CacheError, CacheOptions, GcPolicy, Storage};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Serves S3 from a directory until the runtime ends; gives its address.
async fn serve(dir: &Path) -> String {
    std::fs::create_dir_all(dir.join("bucket")).unwrap();
    let mut service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
    service.set_auth(s3s::auth::SimpleAuth::from_single("key", "secret"));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let service = service.clone();
            tokio::spawn(async move {
                let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                http.serve_connection(TokioIo::new(socket), service).await.ok();
            });
        }
    });
    format!("http://{address}")
}

fn storage(endpoint: &str, secret: &str) -> Storage {
    let options = [
        ("endpoint", endpoint),
        ("region", "us-east-1"),
        ("access_key_id", "key"),
        ("secret_access_key", secret),
        ("allow_http", "true"),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    Storage::S3 { url: "s3://bucket/some/prefix".to_owned(), options }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_on_s3_works_as_a_local_one() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(&dir.path().join("s3")).await;
    let open = |index: &str| {
        let storage = storage(&endpoint, "secret");
        Cache::open(CacheOptions { storage, ..options(&dir.path().join(index)) })
    };
    let cache = open("one").await.unwrap();
    let paths = closure(1);
    push(&cache, &paths).await.unwrap();
    let dead = made("dead", 1, 300_000, &[]);
    push(&cache, std::slice::from_ref(&dead)).await.unwrap();
    assert_intact(&cache, &paths).await;
    cache.pin("kept", &paths[2].info.path, None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    let policy = GcPolicy { max_age: Some(Duration::ZERO), ..GcPolicy::default() };
    let done = cache.collect(&policy).await.unwrap();
    assert_eq!((done.paths_kept, done.paths_removed), (3, 1));
    assert_intact(&cache, &paths).await;
    assert_eq!(cache.verify(None).await.unwrap().damage, []);
    // Another index over the same objects is built from them.
    let again = open("two").await.unwrap();
    assert_intact(&again, &paths).await;
    assert_eq!(again.find(dead.info.path.hash_part()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_wrong_are_told_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(&dir.path().join("s3")).await;
    let open = |storage: Storage| Cache::open(CacheOptions { storage, ..options(dir.path()) });
    let error = open(storage(&endpoint, "hunter2")).await.err().unwrap();
    assert!(matches!(error, CacheError::Storage { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let bad = |url: &str, key: &str| Storage::S3 {
        url: url.to_owned(),
        options: vec![(key.to_owned(), "x".to_owned())],
    };
    let error = open(bad("https://bucket", "region")).await.err().unwrap();
    assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
    let error = open(bad("s3://bucket", "colour")).await.err().unwrap();
    assert!(error.to_string().contains("\"colour\" is no option"), "{error}");
}
