//! A cache as its users see it, wherever it lies.
//!
//! ```text
//! push:  missing_paths ─▶ missing_chunks ─▶ put_chunks … ─▶ commit      (a path appears with its commit, never half)
//!                                           hash_ahead …               (beside that; whoever leaves it out waits longer)
//! pull:  closure ─▶ recipes (those not known yet) ─▶ chunks …           (each in one request for many)
//! ```
//! Nothing that comes from a cache is trusted: whoever pulls checks the signatures of the [`PathInfo`], each chunk's id,
//! and the archive's hash.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use calve_nix::StorePath;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc::Receiver;

use crate::PathInfo;
use crate::chunk::{ChunkId, StoredChunk};
use crate::lazy::Proof;
use crate::recipe::{Piece, Position, Recipe, RecipeId};

/// Most items (paths, chunk ids, recipes) that one request may name; longer lists are split by the caller.
pub const ITEMS_MAX: usize = 100_000;
/// Most bytes of chunks in one upload: what is lost when a connection breaks.
pub const UPLOAD_BYTES_MAX: usize = 16 << 20;

/// Most chunks in one [`ArchivePart`]: some 64 MiB of an archive.
pub const PART_PIECES_MAX: usize = 1024;
/// Most positions in one [`ArchivePart`]: more than one chunk can bring, of an archive that is cut as calve cuts.
pub const PART_POSITIONS_MAX: usize = 1 << 17;

/// Room of the archives that a cache hashes ahead at once, of all pushes, in KiB; see [`ahead_room_kib`].
pub const AHEAD_ROOM_KIB: usize = 96 * 1024;
/// The least that one counts for, whatever its size: it takes a thread.
const AHEAD_ROOM_MIN: u64 = 1 << 20;
/// And the most: what a cache has of an archive in memory is bounded by this.
const AHEAD_ROOM_MAX: u64 = 8 << 20;

/// How much of [`AHEAD_ROOM_KIB`] an archive of this size takes.
pub fn ahead_room_kib(nar_size: u64) -> u32 {
    (nar_size.clamp(AHEAD_ROOM_MIN, AHEAD_ROOM_MAX) / 1024) as u32
}

/// A path in a cache: what is known of it and how its archive is put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What is known of the path.
    pub info: PathInfo,
    /// Its recipe.
    pub recipe: RecipeId,
    /// What lets it be mounted before it is pulled; older caches have none, nor has what is no archive of files.
    pub lazy: Option<Proof>,
}

/// What comes next of an archive that is hashed ahead of its commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivePart {
    /// Its next chunks, which the cache has, or has been lent; at most [`PART_PIECES_MAX`].
    pub pieces: Vec<Piece>,
    /// The next positions: all that begin in these chunks, and perhaps some behind them; at most [`PART_POSITIONS_MAX`].
    pub positions: Vec<Position>,
}

/// What a cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// Its public keys, `<name>:<base64>`; what it commits is signed with the first.
    pub keys: Vec<String>,
    /// Rank among caches; lower is asked first, as in `nix-cache-info`.
    pub priority: u32,
}

/// Who asks where a cache lies on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// What only a process of the same user on the same host, and of the same version, works out.
    pub mark: [u8; 32],
    /// Whether he is going to push.
    pub pushes: bool,
}

/// Where a cache lies on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// What only a process of the same user on the same host works out of this directory.
    pub mark: [u8; 32],
}

/// Why a cache did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It could not be reached, or stopped answering; trying again may help.
    #[error("cannot reach the cache {cache}: {message}")]
    Unreachable {
        /// Its address.
        cache: String,
        /// What the connection said.
        message: String,
    },
    /// It does not allow that.
    #[error("the cache {cache} does not allow that: {message}")]
    Denied {
        /// Its address.
        cache: String,
        /// Its own words.
        message: String,
    },
    /// It has none of that.
    #[error("the cache {cache} has no {what}")]
    Missing {
        /// Its address.
        cache: String,
        /// A path, chunk or recipe.
        what: String,
    },
    /// What was sent is not what it should be; it names the object.
    #[error("{what} is damaged: {message}")]
    Damaged {
        /// A path, chunk, recipe or manifest.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// The cache failed, in its own words.
    #[error("the cache {cache} failed: {message}")]
    Failed {
        /// Its address.
        cache: String,
        /// Its own words.
        message: String,
    },
}

impl RemoteError {
    /// Whether the same request may succeed a moment later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A cache. Every call may be repeated: what is there already is success.
#[async_trait]
pub trait Remote: Send + Sync {
    /// What the cache says of itself.
    async fn info(&self) -> Result<CacheInfo, RemoteError>;

    /// Which of `paths` the cache does not have, in the same order.
    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError>;

    /// Which of `chunks` (recipes are stored alike) the cache does not have, in the same order.
    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError>;

    /// Hands over chunks of at most [`UPLOAD_BYTES_MAX`] together. They stay for the cache's grace without being used.
    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError>;

    /// Makes paths appear, each after its references, with their recipes (those that the cache lacks must be among
    /// `recipes`). The cache checks that the chunks give the archive's hash; the answer holds the manifests with all
    /// signatures.
    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError>;

    /// Has the cache put an archive together and hash it while the rest of it is still pushed: a commit of this path that
    /// comes soon afterwards finds it checked. Nothing depends on it, and a cache may refuse it at any time.
    async fn hash_ahead(&self, info: PathInfo, parts: Receiver<ArchivePart>) -> Result<(), RemoteError> {
        let _ = (info, parts);
        Err(RemoteError::Failed {
            cache: "asked".to_owned(),
            message: "it hashes no archive ahead of its commit".to_owned(),
        })
    }

    /// The cache as those see it who push in its own process.
    fn in_process(&self) -> Option<&dyn InProcess> {
        None
    }

    /// The manifests of `roots` with everything that they refer to; [`RemoteError::Missing`] names what is lacking.
    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError>;

    /// The recipes with these ids, in the same order.
    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError>;

    /// The chunks with these ids, in the same order, streamed; ids are not checked against the bytes.
    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError>;
}

/// A cache in the process of whoever pushes, from whom it takes what it would have to work out again.
#[async_trait]
pub trait InProcess: Send + Sync {
    /// Lends the plain bytes of a chunk from which its id was worked out just now, for the next archive with that chunk which
    /// is hashed. Waits, not for long, while much that was lent has not been hashed.
    async fn lend(&self, id: ChunkId, plain: Bytes);

    /// As [`Remote::put_chunks`], of chunks that were compressed here from bytes with their ids: nothing is checked.
    async fn put_made(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError>;
}
