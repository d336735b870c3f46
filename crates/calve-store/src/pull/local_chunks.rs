//! Chunks read from paths that lie here already.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::plan::{Origin, PlannedPath};
use crate::chunk::ChunkId;
use crate::chunk_view::ChunkView;
use crate::index::{ChunkPlace, LocalIndex};
use crate::recipe::Piece;
use crate::{Store, StoreError};

/// Trees that are kept open for one path: a rebuilt path has most of its chunks in one other path.
const VIEWS_MAX: usize = 2;
/// Bytes of such chunks from which on a thread reads them ahead: starting it takes as long as reading a few.
const AHEAD_BYTES_MIN: u64 = 4 << 20;
/// Chunks that wait to be unpacked then: usually 1 MiB, 4 at most.
const AHEAD_CHUNKS: usize = 16;

/// When it is found out that what lies here is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// By the hash of the whole archive: store paths do not change, and to hash them twice takes longer.
    Whole,
    /// Chunk by chunk.
    Each,
}

/// The local chunks of a path, one after the other.
pub(super) struct LocalChunks<'a> {
    views: &'a Views<'a>,
    /// What another thread reads.
    ahead: Option<Receiver<Read>>,
}

/// A chunk, if its path can be viewed.
type Read = Result<Option<Vec<u8>>, StoreError>;

/// Works with the local chunks of `path`: where they are many, on two threads, so that reading them goes on while what they
/// were read for is hashed.
pub(super) fn with_local_chunks<T>(
    store: &Store,
    index: Option<&Arc<LocalIndex>>,
    path: &PlannedPath,
    trust: Trust,
    work: impl FnOnce(LocalChunks<'_>) -> T,
) -> T {
    let places = || {
        let places = path.recipe.pieces.iter().zip(&path.origins);
        places.filter_map(|(piece, origin)| match origin {
            Origin::Local(place) => Some((piece.id, *place)),
            _ => None,
        })
    };
    let views = &Views { store, index, trust, views: Mutex::default() };
    if places().map(|(_, place)| u64::from(place.len)).sum::<u64>() < AHEAD_BYTES_MIN {
        return work(LocalChunks { views, ahead: None });
    }
    let (give, take) = sync_channel(AHEAD_CHUNKS);
    thread::scope(|scope| {
        scope.spawn(move || {
            for (id, place) in places() {
                // Who takes them has failed.
                if give.send(views.read(id, place)).is_err() {
                    return;
                }
            }
        });
        work(LocalChunks { views, ahead: Some(take) })
    })
}

impl LocalChunks<'_> {
    /// The plain bytes of the next local chunk of the path, which should lie at `place`; none where they do not, so that it
    /// has to be fetched. Where all is believed, what cannot be read is an error: it may be in a file that [`Self::file`] gave.
    pub fn next(&mut self, id: ChunkId, place: ChunkPlace) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.ahead {
            None => self.views.read(id, place),
            Some(take) => take.recv().unwrap_or(Ok(None)),
        }
    }

    /// The file of a local path whose contents were the `size` bytes from byte `at` of the archive with this recipe, with
    /// these hash parts in them: none where it is not known to be what it was by the archive's hash.
    pub fn file<'a>(
        &self,
        recipe: i64,
        at: u64,
        size: u64,
        hashes: impl Iterator<Item = (usize, &'a [u8])>,
    ) -> Option<PathBuf> {
        match self.views.trust {
            Trust::Whole => self.views.opened(recipe)?.file(at, size, hashes),
            Trust::Each => None,
        }
    }
}

/// Local paths that chunks are read from.
pub(super) struct Views<'a> {
    store: &'a Store,
    index: Option<&'a Arc<LocalIndex>>,
    trust: Trust,
    /// Those that were opened last, by number of recipe; none where no path can be viewed.
    views: Mutex<VecDeque<(i64, Option<Arc<ChunkView>>)>>,
}

impl Views<'_> {
    fn read(&self, id: ChunkId, place: ChunkPlace) -> Read {
        let Some(view) = self.view(place.recipe) else { return Ok(None) };
        match self.trust {
            Trust::Whole => view.unchecked(place.len, place.at).map(Some),
            Trust::Each => Ok(view.chunk(Piece { id, len: place.len }, place.at)),
        }
    }

    fn view(&self, recipe: i64) -> Option<Arc<ChunkView>> {
        let mut views = self.lock();
        if let Some((_, view)) = views.iter().find(|(opened, _)| *opened == recipe) {
            return view.clone();
        }
        let view = self.open(recipe).map(Arc::new);
        if views.len() == VIEWS_MAX {
            views.pop_front();
        }
        views.push_back((recipe, view.clone()));
        view
    }

    /// A view that is open now: who read chunks by it has opened it.
    fn opened(&self, recipe: i64) -> Option<Arc<ChunkView>> {
        self.lock().iter().find(|(opened, _)| *opened == recipe)?.1.clone()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(i64, Option<Arc<ChunkView>>)>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, number: i64) -> Option<ChunkView> {
        let index = self.index?;
        let recipe = index.numbered(number).ok()??;
        let holders = index.holders(number).ok()?;
        let places = holders.iter().filter_map(|path| self.store.host_path_of(path));
        places.filter_map(|place| ChunkView::open(&place, &recipe).ok()?).next()
    }
}
