//! Chunks read from paths that lie here already.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Store;
use crate::chunk::ChunkId;
use crate::chunk_view::ChunkView;
use crate::index::{ChunkPlace, LocalIndex};
use crate::recipe::Piece;

/// Trees that one worker keeps open: a rebuilt path has most of its chunks in one other path.
const VIEWS_MAX: usize = 2;

/// A worker's view of local paths. Whatever is wrong with them is no error: then the chunk is fetched.
pub(super) struct LocalChunks<'a> {
    store: &'a Store,
    index: Option<&'a Arc<LocalIndex>>,
    /// The views that were used last, by number of recipe; none where no path can be viewed.
    views: VecDeque<(i64, Option<ChunkView>)>,
}

impl<'a> LocalChunks<'a> {
    pub fn new(store: &'a Store, index: Option<&'a Arc<LocalIndex>>) -> Self {
        Self { store, index, views: VecDeque::new() }
    }

    /// The plain bytes of the chunk that should lie at `place`; none where they do not.
    pub fn read(&mut self, id: ChunkId, place: ChunkPlace) -> Option<Vec<u8>> {
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
        view.as_ref()?.chunk(Piece { id, len: place.len }, place.at)
    }

    fn open(&self, number: i64) -> Option<ChunkView> {
        let index = self.index?;
        let recipe = index.numbered(number).ok()??;
        let holders = index.holders(number).ok()?;
        let places = holders.iter().filter_map(|path| self.store.host_path_of(path));
        places.filter_map(|place| ChunkView::open(&place, &recipe).ok()?).next()
    }
}
