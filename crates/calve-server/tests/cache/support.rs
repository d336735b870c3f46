//! Caches on free ports of this host, paths to put into them, and a client that says exactly what it is told.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calve_nix::{NarWriter, Sha256Hash, StorePath, TrustedKeys};
use calve_server::cache::tokens::{Right, Tokens};
use calve_server::cache::{Upstreams, Visibility, router, serve};
use calve_store::cache::{Cache, CacheOptions};
use calve_store::chunk::StoredChunk;
use calve_store::cut::{CHUNK_LEVEL, cut_stored};
use calve_store::recipe::Recipe;
use calve_store::remote::{Manifest, Remote};
use calve_store::{HttpRemote, PathInfo};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long an answer may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cache that is being served; gone when dropped.
pub struct Served {
    pub cache: Cache,
    pub addr: String,
    pub dir: PathBuf,
    _dir: Option<tempfile::TempDir>,
    shutdown: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Served {
    pub async fn new(visibility: Visibility) -> Self {
        Self::with_upstreams(visibility, &[], "").await
    }

    pub async fn with_upstreams(visibility: Visibility, upstreams: &[&str], trusted: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Self::open(dir.path(), visibility, upstreams, trusted).await;
        served._dir = Some(dir);
        served
    }

    /// A cache in a directory of the test's own.
    pub async fn in_dir(dir: &Path, visibility: Visibility) -> Self {
        Self::open(dir, visibility, &[], "").await
    }

    /// With all that may be said.
    pub async fn open(dir: &Path, visibility: Visibility, upstreams: &[&str], trusted: &str) -> Self {
        let cache = Cache::open(CacheOptions::local(dir)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let upstreams = upstreams.iter().map(|url| url.parse().unwrap()).collect();
        let trusted: TrustedKeys = trusted.parse().unwrap();
        let router = router(cache.clone(), visibility, Upstreams::new(upstreams, trusted).unwrap());
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, router, shutdown.clone()));
        Self { cache, addr, dir: dir.to_owned(), shutdown, _dir: None }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn token(&self, name: &str, right: &Right) -> String {
        Tokens::new(&self.dir).add(name, right).unwrap()
    }

    pub fn remote(&self, token: Option<&str>) -> HttpRemote {
        HttpRemote::new(self.url().parse().unwrap(), token).unwrap()
    }

    /// Says these bytes over a connection of its own and gives what comes back until the server closes it.
    pub async fn say(&self, bytes: impl Into<Vec<u8>>) -> String {
        String::from_utf8_lossy(&self.ask(bytes).await).into_owned()
    }

    /// Says these bytes and nothing more, for as long as the connection is kept.
    pub fn begin(&self, bytes: impl Into<Vec<u8>>) -> TcpStream {
        let mut stream = TcpStream::connect(&self.addr).unwrap();
        stream.write_all(&bytes.into()).unwrap();
        stream
    }

    /// Says these bytes and that no more come.
    pub async fn break_off(&self, bytes: impl Into<Vec<u8>>) -> String {
        String::from_utf8_lossy(&self.exchange(bytes.into(), true).await).into_owned()
    }

    pub async fn ask(&self, bytes: impl Into<Vec<u8>>) -> Vec<u8> {
        self.exchange(bytes.into(), false).await
    }

    async fn exchange(&self, bytes: Vec<u8>, breaks_off: bool) -> Vec<u8> {
        let addr = self.addr.clone();
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // A server that refuses early may have closed already.
            let _ = stream.write_all(&bytes);
            if breaks_off {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answer
        })
        .await
        .unwrap()
    }

    pub async fn get(&self, path: &str, headers: &str) -> String {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\n{headers}\r\n")).await
    }
}

/// A path with a file of these bytes, and everything that a cache needs of it.
pub struct Made {
    pub info: PathInfo,
    pub nar: Vec<u8>,
    pub recipe: Recipe,
    pub chunks: Vec<StoredChunk>,
}

impl Made {
    pub fn manifest(&self) -> Manifest {
        Manifest { info: self.info.clone(), recipe: self.recipe.id(), lazy: None }
    }
}

pub fn path(name: &str) -> StorePath {
    StorePath::from_source(name, &Sha256Hash::of(name.as_bytes())).unwrap()
}

pub fn made(name: &str, contents: &[u8], references: &[&Made]) -> Made {
    let mut contents = contents.to_vec();
    for reference in references {
        contents.extend(reference.info.path.to_string().bytes());
    }
    let mut writer = NarWriter::new(Vec::new()).unwrap();
    writer.file(b"", false, contents.len() as u64, &mut contents.as_slice()).unwrap();
    let nar = writer.finish().unwrap();
    let mut references: Vec<_> = references.iter().map(|made| made.info.path.clone()).collect();
    references.sort();
    let info = PathInfo {
        path: path(name),
        nar_hash: Sha256Hash::of(&nar),
        nar_size: nar.len() as u64,
        references,
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    let cut = cut_stored(&info.counted_references(), None, CHUNK_LEVEL, |out| out.write_all(&nar));
    let (recipe, chunks) = cut.unwrap();
    Made { chunks, recipe, nar, info }
}

/// Bytes that no compression makes smaller, always the same.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Pushes paths, each after its references.
pub async fn push(remote: &dyn Remote, made: &[&Made]) {
    for made in made {
        remote.put_chunks(made.chunks.clone()).await.unwrap();
        remote.commit(vec![made.manifest()], vec![made.recipe.clone()]).await.unwrap();
    }
}
