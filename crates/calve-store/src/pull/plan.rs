//! What a pull has to do: which paths, in which order, and where each of their chunks comes from.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::sign::{Signature, TrustedKeys, VerifyError, fingerprint};

use super::runs::join_runs;
use super::{PullOptions, Source, blocking};
use crate::chunk::ChunkId;
use crate::chunk_view::ChunkView;
use crate::index::{ChunkPlace, LocalIndex};
use crate::normal::Restorer;
use crate::order::references_first;
use crate::place::Landing;
use crate::progress::Progress;
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{ITEMS_MAX, Manifest, RemoteError};
use crate::{PathInfo, Store, TransferError};

pub(super) struct Plan {
    /// The paths that have to come, references first.
    pub paths: Vec<PlannedPath>,
    /// The chunks that have to come, each once, in the order in which they are needed first.
    pub wanted: Arc<[Wanted]>,
}

pub(super) struct PlannedPath {
    pub info: PathInfo,
    pub recipe_id: RecipeId,
    pub recipe: Arc<Recipe>,
    /// For each piece of the recipe.
    pub origins: Vec<Origin>,
    /// What lies here of it from a pull that was cut off.
    pub partial: Option<ChunkView>,
}

/// Where a piece comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// From a cache, for this piece first.
    Fetched,
    /// From a cache, for another piece before.
    FetchedBefore,
    /// From what an earlier pull left of this path.
    Partial,
    /// From a path that lies here.
    Local(ChunkPlace),
}

/// A chunk that has to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub id: ChunkId,
    pub len: u32,
    /// Whether a piece waits for it to come in its turn: then it took room.
    pub first: bool,
    /// Whether other pieces need it too.
    pub again: bool,
}

impl Plan {
    pub async fn make(
        store: &Arc<Store>,
        landing: &Arc<Landing>,
        sources: &[Source],
        roots: &[StorePath],
        options: &PullOptions,
        progress: &Arc<Progress>,
    ) -> Result<Self, TransferError> {
        let none = || Self { paths: Vec::new(), wanted: Arc::new([]) };
        let lacking = lacking(landing, roots.to_vec()).await?;
        let Some(first) = lacking.first() else { return Ok(none()) };
        if sources.is_empty() {
            return Err(TransferError::NoCache { path: first.clone() });
        }
        let (cache, manifests) = manifests(landing, sources, &lacking, options, progress).await?;
        let ids: Vec<_> = manifests.iter().map(|manifest| manifest.recipe).collect();
        let recipes = recipes(sources, ids, options).await?;
        let index = options.index.clone();
        let (store, landing, progress) = (Arc::clone(store), Arc::clone(landing), Arc::clone(progress));
        blocking(move || {
            let index = index.as_deref();
            with_recipes(&store, &landing, manifests, &recipes, &cache, index, &progress)
        })
        .await
    }
}

/// Which of `paths` have to come.
async fn lacking(landing: &Arc<Landing>, paths: Vec<StorePath>) -> Result<Vec<StorePath>, TransferError> {
    let landing = Arc::clone(landing);
    blocking(move || {
        let present = landing.present(&paths)?;
        Ok(paths.into_iter().filter(|path| !present.contains(path)).collect())
    })
    .await
}

/// The manifests of all that has to come, references first, from the first cache that has all and is trusted.
async fn manifests(
    landing: &Arc<Landing>,
    sources: &[Source],
    roots: &[StorePath],
    options: &PullOptions,
    progress: &Progress,
) -> Result<(String, Vec<Manifest>), TransferError> {
    let mut worst: Option<TransferError> = None;
    for source in sources {
        let answer = timely(source, options.stall_timeout, source.remote.closure(roots)).await;
        let checked = match answer {
            Ok(manifests) => {
                let wanted = manifests.iter().map(|manifest| manifest.info.path.clone()).collect();
                let lacking: HashSet<_> = lacking(landing, wanted).await?.into_iter().collect();
                progress.paths.add(manifests.len() as u64);
                progress.paths_present.add(manifests.len().saturating_sub(lacking.len()) as u64);
                check(source, manifests, &lacking, roots, &options.trusted)
            }
            Err(error) => Err(error.into()),
        };
        match checked {
            Ok(manifests) => return Ok((source.name.clone(), manifests)),
            // That a cache has not all is the least that can be said.
            Err(error) => match worst {
                Some(ref before) if !matches!(before, TransferError::Remote(RemoteError::Missing { .. })) => {
                }
                _ => worst = Some(error),
            },
        }
    }
    Err(worst.expect("there is a cache, and it failed"))
}

/// Leaves what has to come and checks it: signed by a trusted key, complete, without circles.
fn check(
    source: &Source,
    manifests: Vec<Manifest>,
    lacking: &HashSet<StorePath>,
    roots: &[StorePath],
    trusted: &TrustedKeys,
) -> Result<Vec<Manifest>, TransferError> {
    let all: HashSet<_> = manifests.iter().map(|manifest| manifest.info.path.clone()).collect();
    if let Some(root) = roots.iter().find(|root| !all.contains(root)) {
        let (cache, what) = (source.name.clone(), root.to_string());
        return Err(RemoteError::Missing { cache, what }.into());
    }
    let mut seen = HashSet::new();
    let new = |manifest: &Manifest| {
        lacking.contains(&manifest.info.path) && seen.insert(manifest.info.path.clone())
    };
    let manifests: Vec<_> = manifests.into_iter().filter(new).collect();
    for Manifest { info, .. } in &manifests {
        info.content_address().map_err(|message| TransferError::Damaged {
            what: info.path.to_string(),
            cache: source.name.clone(),
            message,
        })?;
        verify(info, trusted).map_err(|reason| TransferError::Untrusted {
            path: info.path.clone(),
            cache: source.name.clone(),
            reason,
        })?;
        if let Some(missing) = info.references.iter().find(|reference| !all.contains(reference)) {
            let (path, missing) = (info.path.clone(), missing.clone());
            return Err(TransferError::Incomplete { cache: source.name.clone(), path, missing });
        }
    }
    let infos: Vec<_> = manifests.iter().map(|manifest| &manifest.info).collect();
    let order = references_first(&infos).map_err(|path| TransferError::Damaged {
        what: path.to_string(),
        cache: source.name.clone(),
        message: "it refers to itself through others".to_owned(),
    })?;
    let mut manifests: Vec<_> = manifests.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|n| manifests[n].take()).collect())
}

/// Whether a path may be used: its name follows from its contents, or a trusted key has signed it.
fn verify(info: &PathInfo, trusted: &TrustedKeys) -> Result<(), VerifyError> {
    if info.is_proven_by_contents() {
        return Ok(());
    }
    let references: BTreeSet<_> = info.references.iter().cloned().collect();
    let fingerprint = fingerprint(&info.path, &info.nar_hash, info.nar_size, &references);
    let signatures: Vec<Signature> = info.signatures.iter().filter_map(|text| text.parse().ok()).collect();
    trusted.verify(&fingerprint, &signatures).map(|_| ())
}

/// The recipes with these ids, those of the index first.
async fn recipes(
    sources: &[Source],
    ids: Vec<RecipeId>,
    options: &PullOptions,
) -> Result<HashMap<RecipeId, Arc<Recipe>>, TransferError> {
    let index = options.index.clone();
    let (mut recipes, mut missing) = blocking(move || {
        let (mut known, mut missing, mut seen) = (HashMap::new(), Vec::new(), HashSet::new());
        for id in ids.into_iter().filter(|id| seen.insert(*id)) {
            let recipe = index.as_ref().map(|index| index.recipe(&id)).transpose()?.flatten();
            match recipe.filter(|recipe| recipe.id() == id) {
                Some(recipe) => drop(known.insert(id, Arc::new(recipe))),
                None => missing.push(id),
            }
        }
        Ok((known, missing))
    })
    .await?;
    let mut failed = None;
    for source in sources {
        let mut left = Vec::new();
        for ids in missing.chunks(ITEMS_MAX) {
            match timely(source, options.stall_timeout, source.remote.recipes(ids)).await {
                Ok(answer) => {
                    let mut answer = answer.into_iter();
                    for id in ids {
                        match answer.next().filter(|recipe| recipe.id() == *id) {
                            Some(recipe) => drop(recipes.insert(*id, Arc::new(recipe))),
                            None => {
                                left.push(*id);
                                failed.get_or_insert(damaged_recipe(source, *id));
                            }
                        }
                    }
                }
                Err(error) => {
                    left.extend_from_slice(ids);
                    failed.get_or_insert(error.into());
                }
            }
        }
        missing = left;
        if missing.is_empty() {
            return Ok(recipes);
        }
    }
    if missing.is_empty() { Ok(recipes) } else { Err(failed.expect("what is missing was refused")) }
}

fn damaged_recipe(source: &Source, id: RecipeId) -> TransferError {
    let message = "its bytes have another id".to_owned();
    TransferError::Damaged { what: format!("recipe {id}"), cache: source.name.clone(), message }
}

fn with_recipes(
    store: &Store,
    landing: &Landing,
    manifests: Vec<Manifest>,
    recipes: &HashMap<RecipeId, Arc<Recipe>>,
    cache: &str,
    index: Option<&LocalIndex>,
    progress: &Progress,
) -> Result<Plan, TransferError> {
    let mut paths = Vec::with_capacity(manifests.len());
    for Manifest { info, recipe: id, .. } in manifests {
        let recipe = Arc::clone(&recipes[&id]);
        let damaged = |message: String| TransferError::Damaged {
            what: format!("the recipe of {}", info.path),
            cache: cache.to_owned(),
            message,
        };
        if recipe.nar_size() != info.nar_size {
            let sizes = (recipe.nar_size(), info.nar_size);
            return Err(damaged(format!("it gives {} bytes, but {} were signed", sizes.0, sizes.1)));
        }
        Restorer::new(&recipe.positions, &info.counted_references())
            .map_err(|error| damaged(error.to_string()))?;
        progress.archive_bytes.add(info.nar_size);
        progress.chunks.add(recipe.pieces.len() as u64);
        let partial = landing.partial(&info.path, &recipe);
        let (recipe_id, origins) = (id, Vec::new());
        paths.push(PlannedPath { info, recipe_id, recipe, origins, partial });
    }
    let pieces = || paths.iter().flat_map(|path| &path.recipe.pieces);
    let local = match index {
        Some(index) => index.find(pieces().map(|piece| &piece.id))?,
        None => HashMap::new(),
    };
    let local = held(store, index, local)?;
    let wanted = assign_origins(&mut paths, &local);
    if let Some(index) = index {
        for path in &mut paths {
            join_runs(&path.recipe, &mut path.origins, index)?;
        }
    }
    let fetched = wanted.len() as u64;
    progress.chunks_present.add(paths.iter().map(|path| path.origins.len() as u64).sum::<u64>() - fetched);
    Ok(Plan { paths, wanted: wanted.into() })
}

/// Leaves the places in recipes of which a path still lies here.
fn held(
    store: &Store,
    index: Option<&LocalIndex>,
    mut places: HashMap<ChunkId, ChunkPlace>,
) -> Result<HashMap<ChunkId, ChunkPlace>, TransferError> {
    let Some(index) = index else { return Ok(places) };
    let mut here = HashMap::new();
    for recipe in places.values().map(|place| place.recipe).collect::<HashSet<_>>() {
        let holders = index.holders(recipe)?;
        here.insert(recipe, holders.iter().any(|path| store.host_path_of(path).is_some()));
    }
    places.retain(|_, place| here[&place.recipe]);
    Ok(places)
}

fn assign_origins(paths: &mut [PlannedPath], local: &HashMap<ChunkId, ChunkPlace>) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut first: HashMap<ChunkId, usize> = HashMap::new();
    for path in paths {
        let mut end = 0;
        for piece in &path.recipe.pieces {
            let at = end;
            end += u64::from(piece.len);
            let is_left = path.partial.as_ref().is_some_and(|partial| partial.reaches(at, piece.len));
            let origin = match (local.get(&piece.id), first.get(&piece.id)) {
                _ if is_left => Origin::Partial,
                (Some(place), _) if place.len == piece.len => Origin::Local(*place),
                (_, Some(n)) => {
                    wanted[*n].again = true;
                    Origin::FetchedBefore
                }
                (_, None) => {
                    first.insert(piece.id, wanted.len());
                    wanted.push(Wanted { id: piece.id, len: piece.len, first: true, again: false });
                    Origin::Fetched
                }
            };
            path.origins.push(origin);
        }
    }
    wanted
}

/// The answer of a cache, unless it stalls.
pub(crate) async fn timely<T>(
    source: &Source,
    timeout: Duration,
    answer: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(stalled(source, timeout)),
    }
}

pub(crate) fn stalled(source: &Source, timeout: Duration) -> RemoteError {
    let message = format!("it sent nothing for {} seconds", timeout.as_secs_f32());
    RemoteError::Unreachable { cache: source.name.clone(), message }
}
