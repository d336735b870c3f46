//! What has to be known of a closure before it can be mounted: manifests, recipes and listings, all verified.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use calve_nix::StorePath;
use calve_nix::sign::TrustedKeys;
use futures_util::future::try_join_all;

use super::chunks::{ChunkFailure, Chunks};
use super::tree::{TREE_BYTES_MAX, TREE_NODES_MAX, Tree};
use crate::chunk::ChunkId;
use crate::normal::Restorer;
use crate::pull::{Source, timely};
use crate::recipe::{Piece, Recipe, RecipeId};
use crate::remote::{ITEMS_MAX, Manifest, RemoteError};
use crate::{PathInfo, TransferError};

/// Why a closure cannot be mounted; one sentence that names the object.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// A cache failed, or what it said cannot be trusted.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The cache made no listing of a path, or none that it vouches for.
    #[error("{path} cannot be mounted from the cache {cache}, which has no signed listing of it")]
    NoListing {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: String,
    },
    /// The closure is larger than what is mounted.
    #[error("the closure has more than {TREE_NODES_MAX} files and directories, too many to be mounted")]
    TooLarge,
    /// A block of a listing did not come.
    #[error("the listings of the closure did not come: {0}")]
    Listings(#[from] ChunkFailure),
}

impl LazyError {
    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Transfer(error) => error.hint(),
            Self::NoListing { .. } | Self::TooLarge => Some("pull it as a whole: calve pull".to_owned()),
            Self::Listings(_) => None,
        }
    }
}

/// A path that can be read before it is here.
pub struct LazyPath {
    /// What is known of it.
    pub info: PathInfo,
    /// What is in it.
    pub tree: Tree,
    recipe: Arc<Recipe>,
    /// Where the pieces begin in the archive.
    starts: Vec<u64>,
    restorer: Restorer,
}

/// The paths of a closure.
pub struct LazyClosure {
    /// Those that are read from caches.
    pub paths: Vec<LazyPath>,
    /// Those that are valid on this host.
    pub present: Vec<StorePath>,
}

impl LazyClosure {
    /// Learns what there is of `roots` with everything that they refer to, from the first cache that has all of it and is
    /// trusted. Paths that `present` names are left out. The blocks of listings come through `chunks`.
    pub async fn open(
        sources: &[Source],
        chunks: &Chunks,
        roots: &[StorePath],
        trusted: &TrustedKeys,
        present: impl Fn(&[StorePath]) -> Result<BTreeSet<StorePath>, TransferError>,
    ) -> Result<Self, LazyError> {
        let Some(first) = roots.first() else { return Ok(Self { paths: Vec::new(), present: Vec::new() }) };
        let mut failed = LazyError::from(TransferError::NoCache { path: first.clone() });
        for source in sources {
            match Self::open_from(source, chunks, roots, trusted, &present).await {
                Ok(closure) => return Ok(closure),
                // What is wrong with a closure says more than that the next cache lacks it.
                Err(LazyError::Transfer(TransferError::Remote(RemoteError::Missing { .. })))
                    if !matches!(failed, LazyError::Transfer(TransferError::NoCache { .. })) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn open_from(
        source: &Source,
        chunks: &Chunks,
        roots: &[StorePath],
        trusted: &TrustedKeys,
        present: &impl Fn(&[StorePath]) -> Result<BTreeSet<StorePath>, TransferError>,
    ) -> Result<Self, LazyError> {
        let timeout = chunks.stall_timeout();
        let manifests = timely(source, timeout, source.remote.closure(roots)).await;
        let manifests = manifests.map_err(TransferError::from)?;
        let all: Vec<_> = manifests.iter().map(|manifest| manifest.info.path.clone()).collect();
        check_complete(source, &manifests, roots)?;
        let here = present(&all)?;
        let mut seen = HashSet::new();
        let mut proven = Vec::new();
        for manifest in manifests {
            let path = &manifest.info.path;
            if !here.contains(path) && seen.insert(path.clone()) {
                proven.push((proven_listing(source, &manifest, trusted)?, manifest));
            }
        }
        let ids: HashSet<_> =
            proven.iter().flat_map(|(listing, manifest)| [*listing, manifest.recipe]).collect();
        let recipes = recipes(source, chunks, ids.into_iter().collect()).await?;
        let listings = proven.iter().map(|(listing, _)| (*listing, &recipes[listing]));
        let blocks = blocks(chunks, listings).await?;
        let (mut paths, mut nodes) = (Vec::with_capacity(proven.len()), 0);
        for (listing, Manifest { info, recipe, .. }) in proven {
            let path = LazyPath::new(source, info, recipes[&recipe].clone(), &recipes[&listing], &blocks)?;
            nodes += path.tree.nodes().len();
            if nodes > TREE_NODES_MAX {
                return Err(LazyError::TooLarge);
            }
            paths.push(path);
        }
        Ok(Self { paths, present: here.into_iter().collect() })
    }
}

impl LazyPath {
    fn new(
        source: &Source,
        info: PathInfo,
        recipe: Arc<Recipe>,
        listing: &Recipe,
        blocks: &HashMap<ChunkId, Bytes>,
    ) -> Result<Self, TransferError> {
        let damaged = |what: &str, message: String| TransferError::Damaged {
            what: format!("the {what} of {}", info.path),
            cache: source.name.clone(),
            message,
        };
        if recipe.nar_size() != info.nar_size {
            let sizes = (recipe.nar_size(), info.nar_size);
            return Err(damaged(
                "recipe",
                format!("it gives {} bytes, but {} were signed", sizes.0, sizes.1),
            ));
        }
        let references = info.counted_references();
        let restorer = Restorer::new(&recipe.positions, &references);
        let restorer = restorer.map_err(|error| damaged("recipe", error.to_string()))?;
        let of_listing = Restorer::new(&listing.positions, &references);
        let of_listing = of_listing.map_err(|error| damaged("listing", error.to_string()))?;
        let mut bytes = Vec::new();
        for piece in &listing.pieces {
            bytes.extend_from_slice(&blocks[&piece.id]);
        }
        of_listing.restore(&mut bytes, 0);
        let tree = Tree::decode(&bytes, info.nar_size).map_err(|error| damaged("listing", error.0))?;
        let mut starts = Vec::with_capacity(recipe.pieces.len());
        let mut at = 0;
        for piece in &recipe.pieces {
            starts.push(at);
            at += u64::from(piece.len);
        }
        Ok(Self { info, tree, recipe, starts, restorer })
    }

    /// The pieces that hold these bytes of the archive.
    pub fn pieces(&self, range: &Range<u64>) -> &[Piece] {
        &self.recipe.pieces[self.piece_range(range)]
    }

    fn piece_range(&self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        first..self.starts.partition_point(|start| *start < range.end)
    }

    /// Bytes of the archive, where their chunks are here.
    pub fn read_here(&self, chunks: &Chunks, range: &Range<u64>) -> Option<Vec<u8>> {
        let here: Option<Vec<_>> = self.pieces(range).iter().map(|piece| chunks.here(&piece.id)).collect();
        Some(self.put_together(range, &here?))
    }

    /// Bytes of the archive.
    pub async fn read(&self, chunks: &Chunks, range: &Range<u64>) -> Result<Vec<u8>, ChunkFailure> {
        let pieces = self.pieces(range).iter().map(|piece| chunks.get(*piece));
        Ok(self.put_together(range, &try_join_all(pieces).await?))
    }

    /// The bytes of a range out of the pieces that hold it.
    fn put_together(&self, range: &Range<u64>, pieces: &[Bytes]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let starts = &self.starts[self.piece_range(range)];
        for (start, piece) in starts.iter().zip(pieces) {
            let from = range.start.saturating_sub(*start) as usize;
            let to = ((range.end - start) as usize).min(piece.len());
            bytes.extend_from_slice(&piece[from..to]);
        }
        self.restorer.restore(&mut bytes, range.start);
        bytes
    }
}

/// Checks that all roots are there, and all that paths refer to.
fn check_complete(source: &Source, manifests: &[Manifest], roots: &[StorePath]) -> Result<(), TransferError> {
    let all: HashSet<_> = manifests.iter().map(|manifest| &manifest.info.path).collect();
    if let Some(root) = roots.iter().find(|root| !all.contains(root)) {
        let (cache, what) = (source.name.clone(), root.to_string());
        return Err(RemoteError::Missing { cache, what }.into());
    }
    for Manifest { info, .. } in manifests {
        if let Some(missing) = info.references.iter().find(|reference| !all.contains(reference)) {
            let (path, missing) = (info.path.clone(), missing.clone());
            return Err(TransferError::Incomplete { cache: source.name.clone(), path, missing });
        }
    }
    Ok(())
}

/// The listing of a path, once it is known that a trusted key vouches for it.
fn proven_listing(
    source: &Source,
    manifest: &Manifest,
    trusted: &TrustedKeys,
) -> Result<RecipeId, LazyError> {
    let (path, cache) = (manifest.info.path.clone(), source.name.clone());
    let Some(proof) = &manifest.lazy else { return Err(LazyError::NoListing { path, cache }) };
    match proof.verify(&manifest.info, &manifest.recipe, trusted) {
        Ok(()) => Ok(proof.listing),
        Err(reason) => Err(TransferError::Untrusted { path, cache, reason }.into()),
    }
}

/// The recipes with these ids.
async fn recipes(
    source: &Source,
    chunks: &Chunks,
    ids: Vec<RecipeId>,
) -> Result<HashMap<RecipeId, Arc<Recipe>>, TransferError> {
    let mut recipes = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(ITEMS_MAX) {
        let answer = timely(source, chunks.stall_timeout(), source.remote.recipes(ids)).await?;
        let mut answer = answer.into_iter();
        for id in ids {
            let Some(recipe) = answer.next().filter(|recipe| recipe.id() == *id) else {
                let message = "its bytes have another id".to_owned();
                let (what, cache) = (format!("recipe {id}"), source.name.clone());
                return Err(TransferError::Damaged { what, cache, message });
            };
            recipes.insert(*id, Arc::new(recipe));
        }
    }
    Ok(recipes)
}

/// The blocks of listings.
async fn blocks(
    chunks: &Chunks,
    listings: impl Iterator<Item = (RecipeId, &Arc<Recipe>)>,
) -> Result<HashMap<ChunkId, Bytes>, LazyError> {
    let (mut pieces, mut bytes) = (HashMap::new(), 0);
    for (_, listing) in listings {
        bytes += listing.nar_size();
        if bytes > TREE_BYTES_MAX {
            return Err(LazyError::TooLarge);
        }
        pieces.extend(listing.pieces.iter().map(|piece| (piece.id, *piece)));
    }
    let pieces: Vec<_> = pieces.into_values().collect();
    // All at once, so that they come in few requests.
    chunks.want_now(&pieces);
    let blocks =
        pieces.iter().map(|piece| async { Ok::<_, ChunkFailure>((piece.id, chunks.get(*piece).await?)) });
    Ok(try_join_all(blocks).await?.into_iter().collect())
}
