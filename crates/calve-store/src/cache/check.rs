//! Archives put together from chunks and hashed: at their commit, or ahead of it as their chunks come.

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use calve_nix::content_address::FileCheck;
use calve_nix::{HashWriter, Sha256Hash};
use futures_util::stream::TryStreamExt;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

use super::beginnings::{Beginning, Found, Hasher, Known};
use super::listing::{FromChannel, Listing, read_listing};
use super::{Cache, CacheError, blocking, ended};
use crate::PathInfo;
use crate::chunk::StoredChunk;
use crate::decode;
use crate::lazy::Tree;
use crate::normal::Restorer;
use crate::recipe::Piece;
use crate::remote::PART_PIECES_MAX;

/// Plain bytes of chunks that are read and decompressed by one job.
const GROUP_BYTES: u64 = 2 << 20;
/// And most chunks of them, which may be small: as many as are told of at once.
const GROUP_CHUNKS_MAX: usize = PART_PIECES_MAX;
/// Most chunks that wait while an archive begins as another: more than usually lie between two places that are compared, and
/// far fewer than small ones could be.
const WAITING_CHUNKS_MAX: usize = PART_PIECES_MAX;
/// Such jobs at once for one archive.
const GROUPS_AHEAD: usize = 2;
/// Groups that wait to be hashed and listed.
const GROUPS_WAITING: usize = 1;

/// What was read of an archive.
struct Read {
    hash: Sha256Hash,
    size: u64,
    /// Its tree, if that can be listed, and as it is stored.
    tree: Option<Tree>,
    listing: Option<Listing>,
    /// States of its hash on the way.
    states: Vec<HashWriter>,
}

/// An archive that is put together and hashed.
pub(super) struct ArchiveCheck {
    /// The cache whose chunks they are.
    pub cache: Cache,
    /// The path whose archive it should be.
    pub info: PathInfo,
    beginning: Beginning,
    stage: Stage,
}

enum Stage {
    /// So far it is as an archive that is known, up to where that can be gone on with, if anywhere; these came behind and wait.
    Waiting(Option<Known>, Vec<Piece>),
    Hashing(Hashing),
}

/// An archive that is hashed, from its begin on or from where it is known.
struct Hashing {
    known: Option<Known>,
    /// Where the next group begins that is handed on.
    at: u64,
    /// Groups that are made plain, also while nothing is taken.
    coming: VecDeque<Coming>,
    give: Sender<Vec<Bytes>>,
    reading: JoinHandle<Result<Read, CacheError>>,
}

/// A group that is made plain.
struct Coming {
    pieces: Vec<Piece>,
    plain: JoinHandle<Result<Vec<Bytes>, CacheError>>,
}

impl ArchiveCheck {
    /// Begins with the archive of a path; to be called within a tokio runtime.
    pub fn begin(cache: Cache, info: PathInfo) -> Self {
        // Of what is hashed for a content address no states are kept.
        let stage = match info.file_check() {
            Some(_) => Stage::Hashing(Hashing::begin(&info, None)),
            None => Stage::Waiting(None, Vec::new()),
        };
        Self { cache, info, beginning: Beginning::default(), stage }
    }

    /// Takes the next chunks, for which `restorer` has all positions; some are still made plain when it ends.
    pub async fn take(&mut self, mut pieces: &[Piece], restorer: &Restorer) -> Result<(), CacheError> {
        while !pieces.is_empty() {
            let (next, left, digest) = self.beginning.take(pieces, restorer);
            pieces = left;
            match &mut self.stage {
                Stage::Hashing(hashing) => hashing.take(&self.cache, &self.info, next, restorer).await?,
                Stage::Waiting(known, waiting) => {
                    waiting.extend(next);
                    let found = digest.map(|digest| self.cache.0.beginnings.find(&digest));
                    let differs = matches!(found, Some(Found::Nothing));
                    if let Some(Found::Known(found)) = found {
                        *known = Some(found);
                        waiting.clear();
                    }
                    if differs || waiting.len() > WAITING_CHUNKS_MAX {
                        let stage = std::mem::replace(&mut self.stage, Stage::Waiting(None, Vec::new()));
                        let hashing = stage.hashing(&self.cache, &self.info, restorer).await?;
                        self.stage = Stage::Hashing(hashing);
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on with what was taken, for as long as there is something to do; nothing is lost where this is dropped.
    pub async fn go_on(&mut self, restorer: &Restorer) -> Result<(), CacheError> {
        match &mut self.stage {
            Stage::Hashing(hashing) if !hashing.coming.is_empty() => {
                hashing.hand_on(&self.info, restorer).await
            }
            Stage::Hashing(_) | Stage::Waiting(..) => std::future::pending().await,
        }
    }

    /// Gives the archive's listing, once all of it was taken and is what its path says; `restorer` has all positions.
    pub async fn finish(self, restorer: &Restorer) -> Result<Option<Listing>, CacheError> {
        let Self { cache, info, beginning, stage } = self;
        let hashing = stage.hashing(&cache, &info, restorer).await?;
        let (known, read) = hashing.finish(&info, restorer).await?;
        if (read.hash, read.size) != (info.nar_hash, info.nar_size) {
            let (found, should) = (read.hash.to_nix(), info.nar_hash.to_nix());
            let message = format!("its chunks give {found} instead of {should}");
            return Err(CacheError::damaged(&info.path, message));
        }
        if let Some(tree) = read.tree {
            cache.0.beginnings.keep(tree, beginning, read.states, known);
        }
        Ok(read.listing)
    }
}

impl Stage {
    /// Hashes from now on, first what waits.
    async fn hashing(
        self,
        cache: &Cache,
        info: &PathInfo,
        restorer: &Restorer,
    ) -> Result<Hashing, CacheError> {
        match self {
            Self::Hashing(hashing) => Ok(hashing),
            Self::Waiting(known, waiting) => {
                let mut hashing = Hashing::begin(info, known);
                hashing.take(cache, info, &waiting, restorer).await?;
                Ok(hashing)
            }
        }
    }
}

impl Hashing {
    fn begin(info: &PathInfo, known: Option<Known>) -> Self {
        let (give, take) = channel(GROUPS_WAITING);
        let (info, from) = (info.clone(), known.clone());
        let reading =
            tokio::task::spawn_blocking(move || hash_and_list(FromChannel::new(take), &info, from.as_ref()));
        let at = known.as_ref().map_or(0, Known::bytes);
        Self { known, at, coming: VecDeque::new(), give, reading }
    }

    async fn take(
        &mut self,
        cache: &Cache,
        info: &PathInfo,
        pieces: &[Piece],
        restorer: &Restorer,
    ) -> Result<(), CacheError> {
        for pieces in groups(pieces) {
            while self.coming.len() >= GROUPS_AHEAD {
                self.hand_on(info, restorer).await?;
            }
            // Who takes them gives up where they are no archive, or by a panic: `finish` tells.
            if self.give.is_closed() {
                return Ok(());
            }
            let (cache, pieces) = (cache.clone(), pieces.to_vec());
            let of = pieces.clone();
            let plain = tokio::spawn(async move { cache.plain(&of).await });
            self.coming.push_back(Coming { pieces, plain });
        }
        Ok(())
    }

    /// Hands on the first group that is coming, if there is one; nothing is lost where this is dropped.
    async fn hand_on(&mut self, info: &PathInfo, restorer: &Restorer) -> Result<(), CacheError> {
        let Some(first) = self.coming.front_mut() else { return Ok(()) };
        // As in `take`.
        let Ok(place) = self.give.reserve().await else {
            self.coming.clear();
            return Ok(());
        };
        let chunks = ended(&mut first.plain).await;
        let Some(Coming { pieces, .. }) = self.coming.pop_front() else { return Ok(()) };
        let chunks = chunks?;
        let mut restored = Vec::with_capacity(chunks.len());
        for (chunk, piece) in chunks.into_iter().zip(pieces) {
            if chunk.len() != piece.len as usize {
                let message = format!("chunk {} has another length than its recipe says", piece.id);
                return Err(CacheError::damaged(&info.path, message));
            }
            let (at, len) = (self.at, u64::from(piece.len));
            self.at += len;
            restored.push(if restorer.touches(at, len) {
                // Copied only where somebody else still has these bytes.
                let mut own = Vec::from(chunk);
                restorer.restore(&mut own, at);
                own.into()
            } else {
                chunk
            });
        }
        place.send(restored);
        Ok(())
    }

    async fn finish(
        mut self,
        info: &PathInfo,
        restorer: &Restorer,
    ) -> Result<(Option<Known>, Read), CacheError> {
        while !self.coming.is_empty() {
            self.hand_on(info, restorer).await?;
        }
        drop(self.give);
        Ok((self.known, ended(&mut self.reading).await?))
    }
}

impl Cache {
    /// The plain bytes of chunks, in order, of which each was checked when it came, or cut here: whoever hashes the archive learns of
    /// those that have changed since.
    async fn plain(&self, group: &[Piece]) -> Result<Vec<Bytes>, CacheError> {
        let recent: Vec<_> = group.iter().map(|piece| self.0.recent.take(&piece.id)).collect();
        let lacking = group.iter().zip(&recent).filter(|(_, recent)| recent.is_none());
        let lacking: Vec<_> = lacking.map(|(piece, _)| piece.id).collect();
        if lacking.is_empty() {
            return Ok(recent.into_iter().flatten().collect());
        }
        let stored: Vec<_> = self.read_chunks(lacking).try_collect().await?;
        blocking(move || {
            let mut stored = stored.into_iter().flatten();
            let plain = |recent: Option<Bytes>| {
                if let Some(plain) = recent {
                    return Ok(plain);
                }
                let chunk: StoredChunk = stored.next().expect("as many as were asked for");
                let mut plain = Vec::new();
                decode::append_unchecked(&chunk, &mut plain)
                    .map_err(|error| CacheError::damaged(format!("chunk {}", chunk.id), error.message))?;
                Ok(plain.into())
            };
            recent.into_iter().map(plain).collect()
        })
        .await
    }
}

/// Neighbours of about [`GROUP_BYTES`].
fn groups(pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take(GROUP_CHUNKS_MAX).take_while(|piece| {
            let fits = bytes < GROUP_BYTES;
            bytes += u64::from(piece.len);
            fits
        });
        let (group, behind) = rest.split_at(count.count());
        rest = behind;
        (!group.is_empty()).then_some(group)
    })
}

/// Hashes and lists the archive that comes in chunk by chunk.
fn hash_and_list(archive: FromChannel, info: &PathInfo, known: Option<&Known>) -> Result<Read, CacheError> {
    let (mut hasher, mut check) = (Hasher::new(known), info.file_check());
    let tree = read_listing(archive, known.map(|known| (known.tree(), known.bytes())), |chunk| {
        check.iter_mut().try_for_each(|check| check.write_all(chunk))?;
        hasher.take(chunk);
        Ok(())
    });
    let tree = tree.map_err(|error| CacheError::damaged(&info.path, error))?;
    check_file(info, check)?;
    let listing = Listing::of(tree.as_ref(), info)?;
    let (hash, states) = hasher.finish();
    let (hash, size) = hash.finish();
    Ok(Read { hash, size, tree, listing, states })
}

/// Whether the file that passed by is the one that the path's content address names.
pub(super) fn check_file(info: &PathInfo, check: Option<FileCheck>) -> Result<(), CacheError> {
    if check.is_none_or(FileCheck::is_right) {
        return Ok(());
    }
    Err(CacheError::damaged(&info.path, "its file has another hash than its content address says"))
}
