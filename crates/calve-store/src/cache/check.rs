//! Archives put together from chunks and hashed: at their commit, or ahead of it as their chunks come.

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use calve_nix::content_address::FileCheck;
use calve_nix::{HashWriter, Sha256Hash};
use futures_util::stream::TryStreamExt;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::{JoinError, JoinHandle};

use super::listing::{FromChannel, Listing, read_listing};
use super::{Cache, CacheError, blocking};
use crate::PathInfo;
use crate::chunk::StoredChunk;
use crate::decode;
use crate::normal::Restorer;
use crate::recipe::Piece;

/// Plain bytes of chunks that are read and decompressed by one job.
const GROUP_BYTES: u64 = 2 << 20;
/// Such jobs at once for one archive.
const GROUPS_AHEAD: usize = 2;
/// Groups that wait to be hashed and listed.
const GROUPS_WAITING: usize = 1;

/// Hash and size of an archive, and its listing.
type Read = ((Sha256Hash, u64), Option<Listing>);

/// An archive that is put together and hashed.
pub(super) struct ArchiveCheck {
    /// The cache whose chunks they are.
    pub cache: Cache,
    /// The path whose archive it should be.
    pub info: PathInfo,
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
    plain: JoinHandle<Result<Vec<Vec<u8>>, CacheError>>,
}

impl ArchiveCheck {
    /// Begins with the archive of a path; to be called within a tokio runtime.
    pub fn begin(cache: Cache, info: PathInfo) -> Self {
        let (give, take) = channel(GROUPS_WAITING);
        let of = info.clone();
        let reading = tokio::task::spawn_blocking(move || hash_and_list(FromChannel::new(take), &of));
        Self { cache, info, at: 0, coming: VecDeque::new(), give, reading }
    }

    /// Takes the next chunks, for which `restorer` has all positions; some are still made plain when it ends.
    pub async fn take(&mut self, pieces: &[Piece], restorer: &Restorer) -> Result<(), CacheError> {
        for pieces in groups(pieces) {
            while self.coming.len() >= GROUPS_AHEAD {
                self.hand_on(restorer).await?;
            }
            // Who takes them gives up where they are no archive, or by a panic: `finish` tells.
            if self.give.is_closed() {
                return Ok(());
            }
            let (cache, pieces) = (self.cache.clone(), pieces.to_vec());
            let of = pieces.clone();
            let plain = tokio::spawn(async move { cache.plain(&of).await });
            self.coming.push_back(Coming { pieces, plain });
        }
        Ok(())
    }

    /// Hands on the first group that is coming, if there is one.
    async fn hand_on(&mut self, restorer: &Restorer) -> Result<(), CacheError> {
        let Some(Coming { pieces, plain }) = self.coming.pop_front() else { return Ok(()) };
        let chunks = ended(plain.await)?;
        let mut restored = Vec::with_capacity(chunks.len());
        for (mut chunk, piece) in chunks.into_iter().zip(pieces) {
            if chunk.len() != piece.len as usize {
                let message = format!("chunk {} has another length than its recipe says", piece.id);
                return Err(CacheError::damaged(&self.info.path, message));
            }
            restorer.restore(&mut chunk, self.at);
            self.at += chunk.len() as u64;
            restored.push(chunk.into());
        }
        // As in `take`.
        let _ = self.give.send(restored).await;
        Ok(())
    }

    /// Gives the archive's listing, once all of it was taken and is what its path says; `restorer` has all positions.
    pub async fn finish(mut self, restorer: &Restorer) -> Result<Option<Listing>, CacheError> {
        while !self.coming.is_empty() {
            self.hand_on(restorer).await?;
        }
        drop(self.give);
        let ((found, size), listing) = ended(self.reading.await)?;
        let info = &self.info;
        if (found, size) != (info.nar_hash, info.nar_size) {
            let message = format!("its chunks give {} instead of {}", found.to_nix(), info.nar_hash.to_nix());
            return Err(CacheError::damaged(&info.path, message));
        }
        Ok(listing)
    }
}

/// What a task gave, which nobody aborts; its panics go on here.
fn ended<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Cache {
    /// The plain bytes of chunks, in order, of which each was checked when it came: whoever hashes the archive learns of
    /// those that have changed since.
    async fn plain(&self, group: &[Piece]) -> Result<Vec<Vec<u8>>, CacheError> {
        let recent: Vec<_> = group.iter().map(|piece| self.0.recent.take(&piece.id)).collect();
        let lacking = group.iter().zip(&recent).filter(|(_, recent)| recent.is_none());
        let lacking: Vec<_> = lacking.map(|(piece, _)| piece.id).collect();
        if lacking.is_empty() {
            return Ok(recent.into_iter().flatten().collect());
        }
        let stored: Vec<_> = self.read_chunks(lacking).try_collect().await?;
        blocking(move || {
            let mut stored = stored.into_iter().flatten();
            let plain = |recent: Option<Vec<u8>>| {
                if let Some(plain) = recent {
                    return Ok(plain);
                }
                let chunk: StoredChunk = stored.next().expect("as many as were asked for");
                let mut plain = Vec::new();
                decode::append_unchecked(&chunk, &mut plain)
                    .map_err(|error| CacheError::damaged(format!("chunk {}", chunk.id), error.message))?;
                Ok(plain)
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
        let count = rest.iter().take_while(|piece| {
            let fits = bytes < GROUP_BYTES;
            bytes += u64::from(piece.len);
            fits
        });
        let (group, behind) = rest.split_at(count.count());
        rest = behind;
        (!group.is_empty()).then_some(group)
    })
}

/// Hash and size of the archive that comes in, and its listing.
fn hash_and_list(archive: FromChannel, info: &PathInfo) -> Result<Read, CacheError> {
    let (mut hash, mut check) = (HashWriter::default(), info.file_check());
    let tree = read_listing(archive, |bytes| {
        check.iter_mut().try_for_each(|check| check.write_all(bytes))?;
        hash.write_all(bytes)
    });
    let tree = tree.map_err(|error| CacheError::damaged(&info.path, error))?;
    check_file(info, check)?;
    Ok((hash.finish(), Listing::of(tree.as_ref(), info)?))
}

/// Whether the file that passed by is the one that the path's content address names.
pub(super) fn check_file(info: &PathInfo, check: Option<FileCheck>) -> Result<(), CacheError> {
    if check.is_none_or(FileCheck::is_right) {
        return Ok(());
    }
    Err(CacheError::damaged(&info.path, "its file has another hash than its content address says"))
}
