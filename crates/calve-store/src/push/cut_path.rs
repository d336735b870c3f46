//! A path's archive cut into chunks, each handed on when it is come across first.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use calve_nix::store_path::HASH_CHARS;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::Shared;
use super::ahead::{Ahead, Cut};
use crate::archive::write_nar;
use crate::chunk::ChunkId;
use crate::chunk_view::ChunkView;
use crate::cut::{CutChunk, Foretold, cut_foretold};
use crate::index::LocalIndex;
use crate::recipe::{Piece, Position, Recipe};
use crate::{PathInfo, StoreError, TransferError};

/// A path that has to be cut.
pub(super) struct CutPath {
    pub info: PathInfo,
    pub host_path: PathBuf,
}

/// A chunk that was come across first.
pub(super) struct Found {
    pub id: ChunkId,
    pub len: u32,
    pub plain: Plain,
    /// Room that it takes.
    pub room: OwnedSemaphorePermit,
}

/// Where a chunk's plain bytes are.
pub(super) enum Plain {
    Held(Bytes),
    /// In the files of a path whose recipe is known, at this place of its archive.
    OnDisk(Arc<ChunkView>, u64),
}

/// Where what is cut goes.
pub(super) struct Onward<'a> {
    pub shared: &'a Shared,
    pub found: &'a UnboundedSender<Found>,
    /// Where the cache is told of the archive.
    pub ahead: Option<&'a Ahead>,
    pub runtime: &'a Handle,
}

/// Cuts a path and hands on its chunks, hashed by so many further threads; gives its recipe. Where the recipe is known from
/// before, nothing is read here.
pub(super) fn cut_path(
    path: &CutPath,
    index: Option<&LocalIndex>,
    threads: Option<NonZeroUsize>,
    on: &Onward<'_>,
) -> Result<Recipe, TransferError> {
    let known =
        index.map(|index| index.recipe_of(&path.info.path, &path.info.nar_hash)).transpose()?.flatten();
    if let Some(recipe) = known
        && let Some(view) = ChunkView::open(&path.host_path, &recipe)?
    {
        let view = Arc::new(view);
        let mut at = 0;
        let (mut positions, mut position_end) = (&recipe.positions[..], 0);
        for &piece in &recipe.pieces {
            let plain = || Plain::OnDisk(Arc::clone(&view), at);
            hand_on(piece, plain, on).map_err(|error| read_error(path, error))?;
            at += u64::from(piece.len);
            let begun = begun_before(at, positions, &mut position_end);
            let (own, behind) = positions.split_at(begun);
            positions = behind;
            on.tell_ahead(|| Cut { piece, positions: own.to_vec(), lent: false });
        }
        return Ok(recipe);
    }
    let each = |CutChunk { id, bytes, positions }| {
        let piece = Piece { id, len: bytes.len() as u32 };
        // Only to who will hash it soon: the room for that is small.
        let cache = on.ahead.and_then(|_| on.shared.remote.in_process());
        if let Some(cache) = cache {
            on.runtime.block_on(cache.lend(id, bytes.clone()));
        }
        hand_on(piece, || Plain::Held(bytes), on)?;
        on.tell_ahead(|| Cut { piece, positions, lent: cache.is_some() });
        Ok(())
    };
    let write = |out: &mut dyn io::Write| {
        write_nar(&path.host_path, out).map(|_| ()).map_err(|error| match error {
            // What the cutter says comes back as it was.
            StoreError::Io { source, .. } if source.get_ref().is_some_and(|s| s.is::<TransferError>()) => {
                source
            }
            error => io::Error::other(TransferError::from(error)),
        })
    };
    let foretold = index.map(Foretold::new);
    let recipe = cut_foretold(&path.info.counted_references(), foretold, threads, write, each)
        .map_err(|error| read_error(path, error))?;
    if recipe.nar_size() == path.info.nar_size {
        Ok(recipe)
    } else {
        Err(StoreError::Changed { path: path.host_path.clone() }.into())
    }
}

impl Onward<'_> {
    fn tell_ahead(&self, cut: impl FnOnce() -> Cut) {
        if let Some(ahead) = self.ahead {
            ahead.tell(cut());
        }
    }
}

/// How many of `positions` begin before byte `at` of the archive; `end` is where the one before them ends, and then where
/// the last of these does.
fn begun_before(at: u64, positions: &[Position], end: &mut u64) -> usize {
    let begun = positions.iter().take_while(|position| {
        let begins = *end + position.skip;
        let begun = begins < at;
        if begun {
            *end = begins + HASH_CHARS as u64;
        }
        begun
    });
    begun.count()
}

fn read_error(path: &CutPath, error: io::Error) -> TransferError {
    let of = |source| TransferError::Read { path: path.info.path.clone(), source };
    error.downcast().unwrap_or_else(of)
}

/// Hands on a chunk that was not come across before, once there is room for it.
fn hand_on(piece: Piece, plain: impl FnOnce() -> Plain, on: &Onward<'_>) -> io::Result<()> {
    let Onward { shared, found, runtime, .. } = on;
    shared.progress.chunks.add(1);
    shared.progress.archive_bytes_done.add(u64::from(piece.len));
    let cancelled = || io::Error::other(TransferError::Cancelled);
    {
        let mut chunks = shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.contains_key(&piece.id) {
            shared.progress.chunks_present.add(1);
            return Ok(());
        }
        chunks.insert(piece.id, false);
    }
    let kib = piece.len.div_ceil(1024);
    let room = match Arc::clone(&shared.room).try_acquire_many_owned(kib) {
        Ok(room) => room,
        Err(_) => {
            runtime.block_on(Arc::clone(&shared.room).acquire_many_owned(kib)).map_err(|_| cancelled())?
        }
    };
    let chunk = Found { id: piece.id, len: piece.len, plain: plain(), room };
    found.send(chunk).map_err(|_| cancelled())
}
