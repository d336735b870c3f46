//! Fuzz targets of a cache behind HTTP: bodies, paths and headers of requests, and the files of its tokens. Nonsense is
//! refused, and never a failure of the cache itself.

use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use calve_server::cache::tokens::{Right, Tokens};
use calve_server::cache::{Upstreams, Visibility, router};
use calve_store::cache::{Cache, CacheOptions};
use http_body_util::BodyExt;
use tower_service::Service;

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] =
    &[("authorization", authorization), ("request", request), ("token_file", token_file)];

/// What the first byte of a request stands for.
pub const ROUTES: &[(&str, &str)] = &[
    ("POST", "/calve/v1/missing-paths"),
    ("POST", "/calve/v1/missing-chunks"),
    ("POST", "/calve/v1/closure"),
    ("POST", "/calve/v1/chunks"),
    ("POST", "/calve/v1/recipes"),
    ("POST", "/calve/v1/upload"),
    ("POST", "/calve/v1/commit"),
    ("POST", "/calve/v1/ahead"),
    ("PUT", "/nix-cache-info"),
    ("PUT", "/00000000000000000000000000000000.narinfo"),
    ("PUT", "/00000000000000000000000000000000.ls"),
    ("PUT", "/nar/0000000000000000000000000000000000000000000000000000.nar.zst"),
    ("PUT", "/nar/0000000000000000000000000000000000000000000000000000.nar.xz"),
    ("PUT", "/log/00000000000000000000000000000000-a.drv"),
    ("PUT", "/realisations/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855!out.doi"),
];

/// One cache for all inputs, which refuses nearly all of them.
struct Served {
    /// Inputs run one at a time.
    runtime: Mutex<tokio::runtime::Runtime>,
    router: Router,
    token: String,
    tokens: Mutex<tempfile::TempDir>,
    _dir: tempfile::TempDir,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let token = Tokens::new(dir.path()).add("fuzz", &Right::Push).expect("a token");
        let router = runtime.block_on(async {
            let cache = Cache::open(CacheOptions::local(dir.path())).await.expect("a cache");
            let none = Upstreams::new(Vec::new(), Default::default()).expect("none");
            router(cache, Visibility::Private, none)
        });
        Served {
            runtime: Mutex::new(runtime),
            router,
            token,
            tokens: Mutex::new(tempfile::tempdir().expect("a directory")),
            _dir: dir,
        }
    })
}

impl Served {
    /// The status of the answer, whose body is read to its end.
    fn ask(&self, request: Request<Body>) -> StatusCode {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(async {
            let answer = self.router.clone().call(request).await.unwrap_or_else(|never| match never {});
            let status = answer.status();
            let _ = answer.into_body().collect().await;
            status
        })
    }
}

/// The first byte says what is asked for, the second whether the rest is sent packed; a byte behind the routes takes the
/// rest as the target of a GET, with a range.
fn request(bytes: &[u8]) {
    let Some((&[route, packed], rest)) = bytes.split_first_chunk() else { return };
    let served = served();
    let mut request = Request::new(Body::empty());
    if let Some((method, path)) = ROUTES.get(usize::from(route)) {
        let packed = packed.is_multiple_of(2);
        let body = if packed { zstd::bulk::compress(rest, 1).expect("it fits") } else { rest.to_vec() };
        *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
        *request.uri_mut() = Uri::from_static(path);
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *request.body_mut() = Body::from(body);
    } else {
        let Ok(target) = Uri::try_from(rest) else { return };
        *request.uri_mut() = target;
        let range = format!("bytes={packed}-{route}");
        request.headers_mut().insert(header::RANGE, range.parse().expect("a range"));
    }
    let authorization = format!("Bearer {}", served.token);
    request.headers_mut().insert(header::AUTHORIZATION, authorization.parse().expect("a header"));
    assert_ne!(served.ask(request), StatusCode::INTERNAL_SERVER_ERROR);
}

fn authorization(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from_static("/nix-cache-info");
    request.headers_mut().insert(header::AUTHORIZATION, value);
    assert_eq!(served().ask(request), StatusCode::UNAUTHORIZED);
}

fn token_file(bytes: &[u8]) {
    let dir = served().tokens.lock().unwrap_or_else(PoisonError::into_inner);
    fs::create_dir_all(dir.path().join("tokens")).expect("a directory");
    fs::write(dir.path().join("tokens/a.json"), bytes).expect("a file");
    let tokens = Tokens::new(dir.path());
    match tokens.list() {
        Ok(list) => assert!(list.len() == 1 && list[0].name == "a"),
        Err(error) => assert!(error.to_string().contains("a.json"), "{error}"),
    }
    assert!(tokens.find("calve_guessed").unwrap_or_default().is_none());
}
