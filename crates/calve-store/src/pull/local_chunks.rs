//! Chunks read from paths that lie here already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::plan::{Origin, PlannedPath};
use crate::Store;
use crate::chunk::ChunkId;
use crate::chunk_view::ChunkView;
use crate::index::{ChunkPlace, LocalIndex};
use crate::recipe::Piece;

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

/// The local chunks of a path, one after the other. Whatever is wrong with one is no error: then it is fetched.
pub(super) enum LocalChunks<'a> {
    Here(Views<'a>),
    Ahead(Receiver<Option<Vec<u8>>>),
}

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
    let mut views = Views { store, index, trust, views: VecDeque::new() };
    if places().map(|(_, place)| u64::from(place.len)).sum::<u64>() < AHEAD_BYTES_MIN {
        return work(LocalChunks::Here(views));
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
        work(LocalChunks::Ahead(take))
    })
}

impl LocalChunks<'_> {
    /// The plain bytes of the next local chunk of the path, which should lie at `place`; none where they do not.
    pub fn next(&mut self, id: ChunkId, place: ChunkPlace) -> Option<Vec<u8>> {
        match self {
            Self::Here(views) => views.read(id, place),
            Self::Ahead(take) => take.recv().ok()?,
        }
    }
}

/// Local paths that chunks are read from.
pub(super) struct Views<'a> {
    store: &'a Store,
    index: Option<&'a Arc<LocalIndex>>,
    trust: Trust,
    /// Those that were used last, by number of recipe; none where no path can be viewed.
    views: VecDeque<(i64, Option<ChunkView>)>,
}

impl Views<'_> {
    fn read(&mut self, id: ChunkId, place: ChunkPlace) -> Option<Vec<u8>> {
        let at = match self.views.iter().position(|(recipe, _)| *recipe == place.recipe) {
            Some(at) => at,
            None => {
                let view = self.open(place.recipe);
                if self.views.len() == VIEWS_MAX {
                    self.views.pop_front();
                }
                self.views.push_back((place.recipe, view));
                self.views.len() - 1
            }
        };
        let (_, view) = &self.views[at];
        let view = view.as_ref()?;
        match self.trust {
            Trust::Whole => view.unchecked(place.len, place.at),
            Trust::Each => view.chunk(Piece { id, len: place.len }, place.at),
        }
    }

    fn open(&self, number: i64) -> Option<ChunkView> {
        let index = self.index?;
        let recipe = index.numbered(number).ok()??;
        let holders = index.holders(number).ok()?;
        let places = holders.iter().filter_map(|path| self.store.host_path_of(path));
        places.filter_map(|place| ChunkView::open(&place, &recipe).ok()?).next()
    }
}
