//! `calve cache serve --s3`: against an S3 server in this process, and by hand against any other.

use std::path::Path;

use e2e::{Home, Ran};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use super::cache::serve_with;

const KEY: &str = "calve-test-access-key";
const SECRET: &str = "calve-test-secret-key";

/// Serves S3 from a directory until the test program ends; gives its address.
fn in_process(dir: &Path) -> String {
    std::fs::create_dir_all(dir.join("bucket")).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
    });
    format!("http://{address}")
}

/// Storage of the tests: where, and who may use it.
struct S3 {
    endpoint: String,
    bucket: String,
    key: String,
    secret: String,
}

#[test]
fn a_cache_in_s3_is_served_looked_at_collected_and_built_anew() {
    let home = Home::alone();
    let endpoint = in_process(&home.path().join("s3"));
    let (bucket, key, secret) = ("bucket".to_owned(), KEY.to_owned(), SECRET.to_owned());
    serves_from(&home, &S3 { endpoint, bucket, key, secret });
}

/// By hand, against a server that somebody runs: `CALVE_TEST_S3=http://HOST:PORT/BUCKET`, with credentials in `AWS_…`.
#[test]
fn a_cache_in_the_s3_that_is_named_is_served_looked_at_collected_and_built_anew() {
    let Ok(place) = std::env::var("CALVE_TEST_S3") else {
        eprintln!("not shown: CALVE_TEST_S3 names no S3 server");
        return;
    };
    let (endpoint, bucket) = place.rsplit_once('/').expect("an address with a bucket");
    let secret = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (key, secret) = (secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY"));
    serves_from(
        &Home::alone(),
        &S3 { endpoint: endpoint.to_owned(), bucket: bucket.to_owned(), key, secret },
    );
}

fn serves_from(home: &Home, storage: &S3) {
    let endpoint = format!("endpoint={}", storage.endpoint);
    // A prefix that no run before has used.
    let url = format!("s3://{}/caches/{}", storage.bucket, home.path().file_name().unwrap().display());
    let s3 = ["--s3", &url, "--s3-option", &endpoint, "--s3-option", "allow_http=true"];
    let environment = [
        ("AWS_ACCESS_KEY_ID", &*storage.key),
        ("AWS_SECRET_ACCESS_KEY", &storage.secret),
        ("AWS_REGION", "us-east-1"),
    ];
    let with_s3 = |args: &[&str]| {
        let mut command = home.command([args, &s3].concat());
        command.envs(environment);
        Ran::of(command)
    };
    let dir = home.path().join("cache");
    let serving = serve_with(home, &dir, &s3, &environment);
    let dir = dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--push", "--dir", dir]);
    let key = with_s3(&["cache", "key", "--dir", dir]).stdout;
    let app = home.app();
    let tree = Path::new(&app).parent().unwrap().parent().unwrap().to_str().unwrap();
    let asked = |home: &Home, args: &[&str]| {
        let mut command = home.command(args);
        command.env("CALVE_CACHE_TOKEN", token.trim()).env("CALVE_CACHE", &serving.url);
        Ran::of(command)
    };
    let pushed = asked(home, &["push", tree, "--json"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let pushed: serde_json::Value = serde_json::from_str(&pushed.stdout).unwrap();
    let path = pushed["roots"][0].as_str().unwrap();

    assert!(!Path::new(dir).join("objects/packs").exists(), "chunks lie in S3 alone");
    let info = with_s3(&["cache", "info", "--json", "--dir", dir]);
    let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!((&info["storage"], &info["paths"]), (&url.as_str().into(), &1.into()), "{info}");
    for args in [&["cache", "gc", "--dir", dir][..], &["cache", "verify", "--dir", dir]] {
        let ran = with_s3(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    }
    // On another host, with nothing but the storage.
    let elsewhere = home.path().join("elsewhere");
    let second = serve_with(home, &elsewhere, &[&s3[..], &["--public"]].concat(), &environment);
    for from in [&serving.url, &second.url] {
        let other = Home::alone();
        let pulled = asked(&other, &["pull", path, "--private", "--trusted-key", key.trim(), "--from", from]);
        assert_eq!(pulled.code, 0, "{pulled:?}");
        let place = other.path().join("data/store").join(path.rsplit('/').next().unwrap());
        assert!(std::fs::read(place.join("bin/busybox")).unwrap() == std::fs::read("/bin/busybox").unwrap());
    }
    // Wrong credentials are told, and not shown.
    let mut command = home.command([&["cache", "verify", "--dir", dir][..], &s3].concat());
    command.envs(environment).env("AWS_SECRET_ACCESS_KEY", "hunter2hunter2");
    let refused = Ran::of(command);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
}
