//! A cache that lies in its answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use calve_nix::{Sha256Hash, StorePath};
use calve_store::cache::Cache;
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::recipe::{Recipe, RecipeId};
use calve_store::remote::{CacheInfo, Manifest, Remote, RemoteError};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use super::package::Package;

/// What a cache lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A manifest has no signature.
    Unsigned,
    /// Its signature is of another path.
    SignatureElsewhere,
    /// Its hash is that of what a stranger has under this name.
    Hash,
    /// Its size is another.
    Size,
    /// It lacks a reference.
    Reference,
    /// Its recipe is that of another path.
    Recipe,
    /// It says that its name follows from its bytes, and needs no signature.
    Address,
    /// It is not among the answers.
    Withheld,
    /// The recipe under its id is another.
    Pieces,
    /// A chunk has other bytes.
    Bytes,
    /// A chunk has another length.
    Length,
    /// A chunk is another one.
    Chunk,
    /// Chunks end early.
    End,
    /// Chunks fail.
    Failure,
}

/// Every lie.
pub const LIES: [Kind; 14] = [
    Kind::Unsigned,
    Kind::SignatureElsewhere,
    Kind::Hash,
    Kind::Size,
    Kind::Reference,
    Kind::Recipe,
    Kind::Address,
    Kind::Withheld,
    Kind::Pieces,
    Kind::Bytes,
    Kind::Length,
    Kind::Chunk,
    Kind::End,
    Kind::Failure,
];

/// A lie about one path.
#[derive(Debug, Clone, Copy)]
pub struct Lie {
    pub kind: Kind,
    /// Its number among the paths of the world.
    pub about: usize,
}

/// What is lied about.
struct Subject {
    kind: Kind,
    path: StorePath,
    forged: Sha256Hash,
    /// Of the path, as it was made and as the stranger has it.
    recipes: [RecipeId; 2],
    chunks: BTreeSet<ChunkId>,
}

/// The cache.
pub struct Liar {
    cache: Cache,
    subjects: Vec<Subject>,
    /// Questions that are answered before whoever asks is gone.
    left: Option<AtomicU64>,
    over: Notify,
}

impl Liar {
    pub fn new(cache: Cache, packages: &[Package], lies: Vec<Lie>, cut_after: Option<u64>) -> Self {
        let subject = |lie: Lie| {
            let (package, forged) = (&packages[lie.about], packages[lie.about].forged());
            let (own, others) = (package.cut().0, forged.cut().0);
            Subject {
                kind: lie.kind,
                path: package.info.path.clone(),
                forged: forged.info.nar_hash,
                recipes: [own.id(), others.id()],
                chunks: own.pieces.iter().chain(&others.pieces).map(|piece| piece.id).collect(),
            }
        };
        let subjects = lies.into_iter().map(subject).collect();
        Self { cache, subjects, left: cut_after.map(AtomicU64::new), over: Notify::new() }
    }

    /// Returns once whoever asks is to be cut off.
    pub async fn is_over(&self) {
        self.over.notified().await;
    }

    /// A question; never answered where whoever asks is gone.
    async fn question(&self) {
        let Some(left) = &self.left else { return };
        let more = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if more.is_err() {
            self.over.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn lie(&self, subject: &Subject, manifests: &mut Vec<Manifest>) {
        let Some(at) = manifests.iter().position(|it| it.info.path == subject.path) else { return };
        let other = manifests.iter().find(|it| it.info.path != subject.path).cloned();
        let manifest = &mut manifests[at];
        match subject.kind {
            Kind::Unsigned => manifest.info.signatures.clear(),
            Kind::SignatureElsewhere => {
                manifest.info.signatures = other.map_or_else(Vec::new, |other| other.info.signatures);
            }
            Kind::Hash => manifest.info.nar_hash = subject.forged,
            Kind::Size => manifest.info.nar_size += 8,
            Kind::Reference => drop(manifest.info.references.pop()),
            Kind::Recipe => {
                let own = manifest.recipe;
                let other = subject.recipes.into_iter().find(|recipe| *recipe != own);
                manifest.recipe = other.unwrap_or(own);
            }
            Kind::Address => {
                manifest.info.signatures.clear();
                manifest.info.ca = Some(format!("fixed:r:{}", manifest.info.nar_hash.to_nix()));
            }
            Kind::Withheld => drop(manifests.remove(at)),
            _ => {}
        }
    }
}

#[async_trait]
impl Remote for Liar {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        self.cache.info().await
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.cache.missing_paths(paths).await
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.cache.missing_chunks(chunks).await
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        self.cache.put_chunks(chunks).await
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        self.cache.commit(paths, recipes).await
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.question().await;
        let mut manifests = self.cache.closure(roots).await?;
        self.subjects.iter().for_each(|subject| self.lie(subject, &mut manifests));
        Ok(manifests)
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        self.question().await;
        let mut recipes = self.cache.recipes(ids).await?;
        for subject in self.subjects.iter().filter(|subject| subject.kind == Kind::Pieces) {
            let about = ids.iter().zip(&mut recipes).filter(|(id, _)| subject.recipes.contains(id));
            about.for_each(|(_, recipe)| recipe.pieces.reverse());
        }
        Ok(recipes)
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        self.question().await;
        let about = self.subjects.iter().find(|subject| ids.iter().any(|id| subject.chunks.contains(id)));
        let kind = about.map(|subject| subject.kind);
        let (spoilt, mut told) = (about.map(|subject| subject.chunks.clone()).unwrap_or_default(), None);
        let chunks = self.cache.chunks(ids).await?;
        let lied = chunks.filter_map(move |chunk| {
            let chunk = match (chunk, kind) {
                (Ok(chunk), Some(kind)) if spoilt.contains(&chunk.id) => lie_of(kind, chunk, &mut told),
                (chunk, _) => Some(chunk),
            };
            std::future::ready(chunk)
        });
        Ok(lied.boxed())
    }
}

/// A chunk that is lied about; `before` is the last one.
fn lie_of(
    kind: Kind,
    chunk: StoredChunk,
    before: &mut Option<StoredChunk>,
) -> Option<Result<StoredChunk, RemoteError>> {
    let last = before.replace(chunk.clone());
    Some(Ok(match kind {
        Kind::Bytes => {
            let mut zstd = chunk.zstd.to_vec();
            let at = zstd.len() / 2;
            zstd[at] ^= 1;
            StoredChunk { zstd: zstd.into(), ..chunk }
        }
        Kind::Length => StoredChunk { len: chunk.len + 1, ..chunk },
        Kind::Chunk => last.unwrap_or(chunk),
        Kind::End => return None,
        Kind::Failure => {
            let (cache, message) = ("a liar".to_owned(), "no more".to_owned());
            return Some(Err(RemoteError::Failed { cache, message }));
        }
        _ => chunk,
    }))
}
