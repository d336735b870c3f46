//! A cache in memory that can be told to lie, to stall and to break, and counts what is asked of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use calve_nix::StorePath;
use calve_nix::sign::{PublicKey, SecretKey, fingerprint};
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::recipe::{Recipe, RecipeId};
use calve_store::remote::{CacheInfo, Manifest, Remote, RemoteError};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

/// What a cache does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Flips a bit of every stored chunk.
    pub flip_chunks: bool,
    /// Sends chunks that unpack to far more than they say.
    pub bombs: bool,
    /// Gives chunks other lengths than they have.
    pub wrong_lengths: bool,
    /// Breaks streams of chunks off after this many in all, once each.
    pub break_after: Option<usize>,
    /// Ends streams of chunks after one chunk without an error.
    pub truncate: bool,
    /// Never answers for chunks.
    pub stall: bool,
    /// Has manifests, but no chunks.
    pub no_chunks: bool,
    /// Sends nothing more once it comes to one of these.
    pub hang_at: HashSet<ChunkId>,
    /// Refuses uploaded chunks after this many.
    pub deny_chunks_after: Option<usize>,
}

pub struct Memory {
    pub key: SecretKey,
    pub chunks: Mutex<HashMap<ChunkId, StoredChunk>>,
    pub recipes: Mutex<HashMap<RecipeId, Recipe>>,
    pub manifests: Mutex<BTreeMap<StorePath, Manifest>>,
    pub faults: Mutex<Faults>,
    /// Ids of all chunks that were sent, in order.
    pub sent: Mutex<Vec<ChunkId>>,
    /// Ids of all chunks that were uploaded, in order.
    pub uploaded: Mutex<Vec<ChunkId>>,
    pub requests: AtomicUsize,
    pub commits: AtomicUsize,
}

impl Memory {
    pub fn new(key_name: &str) -> Self {
        Self {
            key: SecretKey::from_seed(key_name, [key_name.len() as u8; 32]).unwrap(),
            chunks: Mutex::default(),
            recipes: Mutex::default(),
            manifests: Mutex::default(),
            faults: Mutex::default(),
            sent: Mutex::default(),
            uploaded: Mutex::default(),
            requests: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
        }
    }

    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Changes a manifest behind everybody's back.
    pub fn tamper(&self, path: &StorePath, change: impl FnOnce(&mut Manifest)) {
        change(self.manifests.lock().unwrap().get_mut(path).unwrap());
    }

    /// Signs all manifests again, as a cache would that lies with its own key.
    pub fn resign(&self) {
        for manifest in self.manifests.lock().unwrap().values_mut() {
            manifest.info.signatures = vec![self.sign(manifest)];
        }
    }

    pub fn stored_bytes(&self) -> usize {
        let chunks: usize = self.chunks.lock().unwrap().values().map(|chunk| chunk.zstd.len()).sum();
        let recipes: usize = self.recipes.lock().unwrap().values().map(|recipe| recipe.encode().len()).sum();
        chunks + recipes
    }

    fn sign(&self, manifest: &Manifest) -> String {
        let info = &manifest.info;
        let references = info.references.iter().cloned().collect();
        self.key.sign(&fingerprint(&info.path, &info.nar_hash, info.nar_size, &references)).to_string()
    }

    fn missing(&self, what: impl ToString) -> RemoteError {
        RemoteError::Missing { cache: self.key.name().to_owned(), what: what.to_string() }
    }

    fn lie(&self, mut chunk: StoredChunk) -> StoredChunk {
        let faults = self.faults.lock().unwrap();
        if faults.flip_chunks {
            let mut zstd = chunk.zstd.to_vec();
            let at = zstd.len() / 2;
            zstd[at] ^= 1;
            chunk.zstd = zstd.into();
        }
        if faults.bombs {
            let bomb = vec![0; 1 << 20];
            chunk.zstd = StoredChunk::compress(chunk.id, &bomb, 1).unwrap().zstd;
        }
        if faults.wrong_lengths {
            chunk.len += 1;
        }
        chunk
    }
}

#[async_trait]
impl Remote for Memory {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        Ok(CacheInfo { keys: vec![self.public().to_string()], priority: 40 })
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let manifests = self.manifests.lock().unwrap();
        Ok(paths.iter().filter(|path| !manifests.contains_key(path)).cloned().collect())
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (stored, recipes) = (self.chunks.lock().unwrap(), self.recipes.lock().unwrap());
        Ok(chunks
            .iter()
            .filter(|id| !stored.contains_key(id) && !recipes.contains_key(id))
            .copied()
            .collect())
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        for chunk in chunks {
            if let Some(left) = &mut self.faults.lock().unwrap().deny_chunks_after {
                let Some(less) = left.checked_sub(1) else {
                    let (cache, message) = (self.key.name().to_owned(), "enough".to_owned());
                    return Err(RemoteError::Denied { cache, message });
                };
                *left = less;
            }
            chunk.plain().unwrap();
            self.uploaded.lock().unwrap().push(chunk.id);
            self.chunks.lock().unwrap().insert(chunk.id, chunk);
        }
        Ok(())
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        let mut known = self.recipes.lock().unwrap();
        known.extend(recipes.into_iter().map(|recipe| (recipe.id(), recipe)));
        let mut answer = Vec::new();
        for mut manifest in paths {
            let recipe = known.get(&manifest.recipe).ok_or_else(|| self.missing(manifest.recipe))?;
            let chunks = self.chunks.lock().unwrap();
            if let Some(piece) = recipe.pieces.iter().find(|piece| !chunks.contains_key(&piece.id)) {
                return Err(self.missing(piece.id));
            }
            let mut manifests = self.manifests.lock().unwrap();
            let there = |path: &StorePath| *path == manifest.info.path || manifests.contains_key(path);
            if let Some(path) = manifest.info.references.iter().find(|path| !there(path)) {
                return Err(self.missing(path));
            }
            manifest.info.signatures.push(self.sign(&manifest));
            manifests.insert(manifest.info.path.clone(), manifest.clone());
            answer.push(manifest);
        }
        Ok(answer)
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let manifests = self.manifests.lock().unwrap();
        let (mut queue, mut seen, mut closure) = (roots.to_vec(), HashSet::new(), Vec::new());
        while let Some(path) = queue.pop() {
            if seen.insert(path.clone()) {
                let manifest = manifests.get(&path).ok_or_else(|| self.missing(&path))?;
                queue.extend(manifest.info.references.iter().cloned());
                closure.push(manifest.clone());
            }
        }
        Ok(closure)
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let recipes = self.recipes.lock().unwrap();
        ids.iter().map(|id| recipes.get(id).cloned().ok_or_else(|| self.missing(id))).collect()
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let faults = self.faults.lock().unwrap().clone();
        if faults.stall {
            std::future::pending::<()>().await;
        }
        let mut answer = Vec::new();
        let hangs = ids.iter().any(|id| faults.hang_at.contains(id));
        for (n, id) in ids.into_iter().enumerate() {
            if faults.hang_at.contains(&id) {
                break;
            }
            let chunk = self.chunks.lock().unwrap().get(&id).filter(|_| !faults.no_chunks).cloned();
            let chunk = self.lie(chunk.ok_or_else(|| self.missing(id))?);
            let broken = {
                let mut faults = self.faults.lock().unwrap();
                let broken = faults.break_after == Some(0);
                faults.break_after = faults.break_after.and_then(|left| left.checked_sub(1));
                broken
            };
            if broken {
                let (cache, message) = (self.key.name().to_owned(), "the connection broke".to_owned());
                answer.push(Err(RemoteError::Unreachable { cache, message }));
                break;
            }
            self.sent.lock().unwrap().push(id);
            answer.push(Ok(chunk));
            if faults.truncate && n == 0 {
                break;
            }
        }
        let stream = stream::iter(answer);
        if hangs { Ok(stream.chain(stream::pending()).boxed()) } else { Ok(stream.boxed()) }
    }
}
