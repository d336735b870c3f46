//! Making paths appear.
//!
//! ```text
//! check references, signatures, recipes ─▶ put each archive together and hash it ─▶ sign ─▶ pack ─▶ rows
//!                                          (or it was hashed ahead: `ahead.rs`)
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use calve_nix::sign::fingerprint;
use calve_nix::{Signature, StorePath};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rusqlite::Connection;

use super::check::ArchiveCheck;
use super::index::{WriteError, chunks, paths};
use super::listing::Listing;
use super::nar::Assembly;
use super::pack::{Kind, PackWriter};
use super::write::Written;
use super::{Cache, CacheError, blocking, manifest, now_ms};
use crate::PathInfo;
use crate::chunk::{ChunkId, StoredChunk};
use crate::cut::CHUNK_LEVEL;
use crate::lazy::Tree;
use crate::processors::processors;
use crate::recipe::{Recipe, RecipeId};
use crate::remote::Manifest;

/// Archives that are put together at once, at most: each holds some 16 MiB.
const CHECKED_AT_ONCE_MAX: usize = 4;
/// Most signatures that a path keeps: whoever may push could else grow a manifest without end.
const SIGNATURES_MAX: usize = 64;

/// Whether the archives are checked, or the only one was just cut into chunks here, with this tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Check {
    Archives,
    AlreadyDone(Option<Tree>),
}

type Recipes = HashMap<RecipeId, Arc<Recipe>>;
/// What is stored unless it is there.
type Encoded = HashMap<ChunkId, (Kind, StoredChunk)>;

impl Cache {
    /// Makes paths appear; see [`crate::remote::Remote::commit`].
    pub(super) async fn commit_paths(
        &self,
        manifests: Vec<Manifest>,
        recipes: Vec<Recipe>,
        check: Check,
    ) -> Result<Vec<Manifest>, CacheError> {
        let (given, mut encoded) = blocking(move || encode_recipes(recipes)).await?;
        let mut results = Vec::with_capacity(manifests.len());
        let (mut new, mut changed) = (Vec::new(), Vec::new());
        for (at, mut manifest) in manifests.into_iter().enumerate() {
            tidy(&mut manifest.info)?;
            match self.find(manifest.info.path.hash_part()).await? {
                Some(kept) => {
                    results.push(merged(&kept, &manifest)?);
                    if results[at] != kept {
                        changed.push(at);
                    }
                }
                None => {
                    self.sign(&mut manifest.info);
                    manifest.lazy = None;
                    new.push(at);
                    results.push(manifest);
                }
            }
        }
        let fresh: Vec<_> = new.iter().map(|at| results[*at].clone()).collect();
        let (mut used, listings) = self.check_all(&fresh, given, check).await?;
        for (at, listing) in new.iter().zip(listings) {
            let Some(Listing { recipe, chunks }) = listing else { continue };
            let plain = recipe.encode();
            let id = ChunkId::of(&plain);
            results[*at].lazy = Some(self.prove(&results[*at], id));
            encoded.insert(id, (Kind::Recipe, compress(id, &plain)?));
            encoded.extend(chunks.into_iter().map(|chunk| (chunk.id, (Kind::Chunk, chunk))));
            used.insert(id, recipe);
        }
        let written: Vec<_> = new.iter().chain(&changed).map(|at| results[*at].clone()).collect();
        if written.is_empty() {
            return Ok(results);
        }
        let stored = self.insert(written, used, encoded).await?;
        for manifest in &mut results {
            if let Some(stored) = stored.get(manifest.info.path.hash_part()) {
                manifest.clone_from(stored);
            }
        }
        Ok(results)
    }

    fn sign(&self, info: &mut PathInfo) {
        let references: BTreeSet<StorePath> = info.references.iter().cloned().collect();
        let text = fingerprint(&info.path, &info.nar_hash, info.nar_size, &references);
        let signature = self.0.key.sign(&text).to_string();
        if !info.signatures.contains(&signature) {
            info.signatures.insert(0, signature);
        }
    }

    /// Checks that the archives of `manifests` are what they say; gives the recipes, and the listing of each.
    async fn check_all(
        &self,
        manifests: &[Manifest],
        mut given: Recipes,
        check: Check,
    ) -> Result<(Recipes, Vec<Option<Listing>>), CacheError> {
        let wanted: HashSet<_> = manifests.iter().map(|manifest| manifest.recipe).collect();
        given.retain(|id, _| wanted.contains(id));
        let stored: Vec<_> = wanted.into_iter().filter(|id| !given.contains_key(id)).collect();
        let read = self.read_recipes(stored.clone()).await?;
        given.extend(stored.into_iter().zip(read.into_iter().map(Arc::new)));
        let assemblies = manifests.iter().map(|manifest| {
            let recipe = given[&manifest.recipe].clone();
            Assembly::new(manifest, recipe).map(|assembly| (manifest.info.clone(), assembly))
        });
        let assemblies: Vec<_> = assemblies.collect::<Result<_, _>>()?;
        let listings = match check {
            Check::Archives => {
                stream::iter(assemblies)
                    .map(|(info, assembly)| async move { self.check_archive(&info, &assembly).await })
                    .buffered(processors().min(CHECKED_AT_ONCE_MAX))
                    .try_collect()
                    .await?
            }
            Check::AlreadyDone(tree) => {
                let listing = |manifest: &Manifest| Listing::of(tree.as_ref(), &manifest.info);
                manifests.iter().map(listing).collect::<Result<_, _>>()?
            }
        };
        Ok((given, listings))
    }

    async fn check_archive(
        &self,
        info: &PathInfo,
        assembly: &Assembly,
    ) -> Result<Option<Listing>, CacheError> {
        let recipe = &assembly.recipe;
        if let Some(listing) = self.0.aheads.take(info, &recipe.pieces, &recipe.positions) {
            return Ok(listing);
        }
        let _cpu = self.0.cpus.acquire().await.expect("never closed");
        let mut check = ArchiveCheck::begin(self.clone(), info.clone());
        check.take(&recipe.pieces, &assembly.restorer).await?;
        check.finish(&assembly.restorer).await
    }

    /// Writes manifests and recipes, then the rows. Gives what is there now, by hash part.
    async fn insert(
        &self,
        manifests: Vec<Manifest>,
        recipes: Recipes,
        encoded: Encoded,
    ) -> Result<HashMap<String, Manifest>, CacheError> {
        let used = recipes.iter().flat_map(|(id, recipe)| {
            recipe.pieces.iter().map(|piece| &piece.id).chain([id]).filter(|id| encoded.contains_key(id))
        });
        let wanted: Vec<_> = used.copied().collect::<HashSet<_>>().into_iter().collect();
        let this = self.clone();
        let missing = blocking(move || this.missing_now(&wanted)).await?;
        let (packs, frames) = blocking({
            let manifests = manifests.clone();
            move || packs(&manifests, missing.iter().map(|id| &encoded[id]))
        })
        .await?;
        let mut written = Vec::new();
        for pack in packs {
            written.push(self.write_pack(pack).await?);
        }
        self.0.index.write(move |index| insert_rows(index, &manifests, &frames, &recipes, &written)).await
    }
}

/// Recipes by id, and as they are stored.
fn encode_recipes(recipes: Vec<Recipe>) -> Result<(Recipes, Encoded), CacheError> {
    let (mut by_id, mut encoded) = (HashMap::new(), HashMap::new());
    for recipe in recipes {
        let plain = recipe.encode();
        // Encoded and decoded once, so that nothing is stored that is refused when it is read.
        let recipe = Recipe::decode(&plain).map_err(|error| CacheError::damaged("a recipe", error.0))?;
        let id = ChunkId::of(&plain);
        let chunk = compress(id, &plain)?;
        by_id.insert(id, Arc::new(recipe));
        encoded.insert(id, (Kind::Recipe, chunk));
    }
    Ok((by_id, encoded))
}

fn compress(id: ChunkId, plain: &[u8]) -> Result<StoredChunk, CacheError> {
    StoredChunk::compress(id, plain, CHUNK_LEVEL)
        .map_err(|error| CacheError::damaged(id, format!("it cannot be compressed: {error}")))
}

/// References in order and once each; a content address from which the path follows; signatures that are some.
pub(super) fn tidy(info: &mut PathInfo) -> Result<(), CacheError> {
    info.references.sort_unstable();
    info.references.dedup();
    let mut seen = HashSet::new();
    info.signatures.retain(|signature| seen.insert(signature.clone()));
    info.content_address().map_err(|message| CacheError::damaged(&info.path, message))?;
    check_signatures(info)
}

fn check_signatures(info: &PathInfo) -> Result<(), CacheError> {
    if info.signatures.len() > SIGNATURES_MAX {
        let message = format!("it has {} signatures, more than {SIGNATURES_MAX}", info.signatures.len());
        return Err(CacheError::damaged(&info.path, message));
    }
    for signature in &info.signatures {
        let parsed: Result<Signature, _> = signature.parse();
        parsed.map_err(|error| CacheError::damaged(&info.path, format!("a signature: {error}")))?;
    }
    Ok(())
}

/// A path that is there with the signatures of one that is the same; another build of it changes nothing.
fn merged(kept: &Manifest, new: &Manifest) -> Result<Manifest, CacheError> {
    let mut merged = kept.clone();
    if kept.info.nar_hash == new.info.nar_hash && kept.info.references == new.info.references {
        let more = new.info.signatures.iter().filter(|new| !kept.info.signatures.contains(new));
        merged.info.signatures.extend(more.cloned());
        check_signatures(&merged.info)?;
    }
    Ok(merged)
}

/// Packs of recipes, listings and manifests, and the id of each manifest's frame.
fn packs<'a>(
    manifests: &[Manifest],
    parts: impl Iterator<Item = &'a (Kind, StoredChunk)>,
) -> Result<(Vec<PackWriter>, Vec<ChunkId>), CacheError> {
    let mut packs = vec![PackWriter::new()];
    let mut push = |kind, chunk: &StoredChunk| {
        if packs.last().is_some_and(PackWriter::is_full) {
            packs.push(PackWriter::new());
        }
        packs.last_mut().expect("there is at least one").push(kind, chunk);
    };
    parts.for_each(|(kind, chunk)| push(*kind, chunk));
    let mut frames = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        let plain = manifest::encode(manifest);
        let id = ChunkId::of(&plain);
        push(Kind::Manifest, &compress(id, &plain)?);
        frames.push(id);
    }
    Ok((packs, frames))
}

fn insert_rows(
    index: &Connection,
    manifests: &[Manifest],
    frames: &[ChunkId],
    recipes: &Recipes,
    written: &[Written],
) -> Result<HashMap<String, Manifest>, WriteError> {
    let now_ms = now_ms();
    let mut packs = HashMap::new();
    for Written { name, bytes, entries } in written {
        let pack = chunks::insert_pack(index, name, *bytes, entries, now_ms)?;
        chunks::insert_chunks(index, pack, entries, now_ms)?;
        packs.extend(entries.iter().map(|(_, entry)| (entry.id, pack)));
    }
    // Touched here, in the same transaction: a collection that has counted them as unused spares them now.
    for (id, recipe) in recipes {
        let ids = recipe.pieces.iter().map(|piece| &piece.id).chain([id]);
        for id in ids {
            if !chunks::touch(index, id, now_ms)? {
                return Err(WriteError::Refused(CacheError::Missing(format!("chunk {id}"))));
            }
        }
    }
    let (mut stored, mut inserted) = (HashMap::new(), Vec::new());
    for (manifest, frame) in manifests.iter().zip(frames) {
        let path = &manifest.info.path;
        let known = recipes.contains_key(&manifest.recipe);
        match paths::get(index, path.hash_part())? {
            // Another writer was faster: its result counts.
            Some(row) if known && !row.broken => {
                let kept = manifest::decode(&row.manifest).map_err(WriteError::Refused)?;
                stored.insert(path.hash_part().to_owned(), kept);
            }
            None if !known => {
                return Err(WriteError::Refused(CacheError::Missing(path.to_string())));
            }
            _ => {
                let bytes = manifest::encode(manifest);
                let number = paths::upsert(index, path, &bytes, &manifest.recipe, packs[frame], now_ms)?;
                inserted.push((number, &manifest.info));
                stored.insert(path.hash_part().to_owned(), manifest.clone());
            }
        }
    }
    for (number, info) in inserted {
        for reference in &info.references {
            if !paths::insert_ref(index, number, reference)? {
                let what = format!("{reference}, to which {} refers", info.path);
                return Err(WriteError::Refused(CacheError::Missing(what)));
            }
        }
    }
    Ok(stored)
}
