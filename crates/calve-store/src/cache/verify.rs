//! Reading everything, naming what is damaged, and repairing it from another cache.

use std::collections::{HashMap, HashSet};

use calve_nix::StorePath;
use futures_util::StreamExt;

use super::index::chunks::{self, Location, Pack};
use super::index::paths;
use super::pack::{self, Kind, PackWriter};
use super::{Cache, CacheError, blocking, manifest, read, rewrite};
use crate::chunk::{ChunkId, StoredChunk};
use crate::recipe::Recipe;
use crate::remote::{Manifest, Remote};

/// Paths that are looked at between two looks at the index.
const PATHS_AT_ONCE: i64 = 1000;

/// One damaged thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// `chunk <id>`, `recipe <id>`, `manifest of <path>`, `pack <name>`, or `index`.
    pub what: String,
    /// The object that it lies in.
    pub object: String,
    /// What is wrong with it.
    pub message: String,
    /// Whether it is right again.
    pub repaired: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Packs that were read.
    pub packs: u64,
    /// Chunks and recipes that were checked.
    pub chunks: u64,
    /// Paths whose manifests were checked.
    pub paths: u64,
    /// Paths that lay in packs and that the index did not know, because their commit was cut off or the index was damaged; they
    /// are there again.
    pub paths_restored: u64,
    /// Everything that is damaged.
    pub damage: Vec<Damage>,
    /// Paths that cannot be put together any more; a push makes them whole.
    pub paths_broken: Vec<StorePath>,
}

/// A pack's damage.
struct Found {
    damage: Vec<Damage>,
    /// Chunks and recipes that are wrong.
    bad: Vec<(Kind, ChunkId)>,
    /// Whether the object is not as it was written.
    spoilt: bool,
    checked: u64,
}

impl Cache {
    /// Reads every object. Damaged chunks are fetched from `repair` where it has them; what is right in a damaged pack
    /// moves to a new one. Paths that lack a chunk afterwards count as missing, so that the next push makes them whole.
    pub async fn verify(&self, repair: Option<&dyn Remote>) -> Result<Verified, CacheError> {
        let _lock = self.lock("gc.lock", "collects garbage or verifies")?;
        self.0.beginnings.forget();
        let mut done = Verified { paths_restored: self.restore_lost().await?, ..Verified::default() };
        let mut lost = HashSet::new();
        for pack in self.0.index.read(chunks::packs).await? {
            let found = self.verify_pack(&pack).await?;
            done.packs += 1;
            done.chunks += found.checked;
            if found.spoilt {
                let mended = self.mend(&pack, &found, repair).await?;
                lost.extend(found.bad.iter().map(|(_, id)| *id).filter(|id| !mended.contains(id)));
                let mark = |mut damage: Damage| {
                    damage.repaired = found.bad.iter().all(|(_, id)| mended.contains(id))
                        || mended.iter().any(|id| damage.what.ends_with(&id.to_hex()));
                    damage
                };
                done.damage.extend(found.damage.into_iter().map(mark));
            }
        }
        if let Some(remote) = repair {
            done.damage.extend(self.heal(remote).await?);
        }
        self.verify_paths(&lost, &mut done).await?;
        Ok(done)
    }

    async fn verify_pack(&self, pack: &Pack) -> Result<Found, CacheError> {
        let number = pack.pack;
        let read = move |index: &rusqlite::Connection| chunks::in_pack(index, number);
        let rows = self.0.index.read(read).await?;
        let object = match self.0.objects.get(&pack.name).await {
            Err(error) if error.is_gone() => bytes::Bytes::new(),
            object => object?,
        };
        let pack = pack.clone();
        blocking(move || {
            let rows = rows.into_iter().map(|(location, _)| location).collect();
            let mut found = check_chunks(&pack, &object, rows);
            let whole = pack::read_contents(&object, object.len() as u64, &pack.name).and_then(|contents| {
                check_manifests(&pack, &object, &contents.0, &mut found)?;
                Ok(pack::frames_intact(&object, contents.1))
            });
            let message = match whole {
                Ok(true) => None,
                Ok(false) => Some("its frames are not what was written".to_owned()),
                Err(CacheError::Damaged { message, .. }) => Some(message),
                Err(other) => return Err(other),
            };
            if let Some(message) = message {
                found.spoilt = true;
                let (what, object) = (format!("pack {}", pack.name), pack.name.clone());
                found.damage.push(Damage { what, object, message, repaired: false });
            }
            Ok(found)
        })
        .await
    }

    /// Puts a new pack in the place of a spoilt one: what is right in it, and what `repair` has of the rest. Gives what is
    /// right again. Rows of lost chunks go, so that an upload brings them back.
    async fn mend(
        &self,
        pack: &Pack,
        found: &Found,
        repair: Option<&dyn Remote>,
    ) -> Result<HashSet<ChunkId>, CacheError> {
        let fetched = match repair {
            Some(remote) => fetch(remote, &found.bad).await,
            None => HashMap::new(),
        };
        let bad: HashSet<_> = found.bad.iter().map(|(_, id)| *id).collect();
        let mended: HashSet<_> = fetched.keys().copied().collect();
        let mut writer = PackWriter::new();
        let number = pack.pack;
        let read = move |index: &rusqlite::Connection| {
            Ok((chunks::in_pack(index, number)?, paths::in_pack(index, number)?))
        };
        let (rows, manifests) = self.0.index.read(read).await?;
        let object = if rows.iter().all(|(location, _)| bad.contains(&location.id)) {
            bytes::Bytes::new()
        } else {
            self.0.objects.get(&pack.name).await?
        };
        for (location, _) in &rows {
            if let Some(chunk) = fetched.get(&location.id) {
                writer.push(location.kind, chunk);
            } else if !bad.contains(&location.id) {
                writer.push(location.kind, &read::stored(location, &object, 0));
            }
        }
        for row in &manifests {
            writer.push(Kind::Manifest, &rewrite::manifest_frame(&row.manifest)?);
        }
        let lost: Vec<_> = bad.difference(&mended).copied().collect();
        let drop_lost = move |index: &rusqlite::Transaction<'_>| {
            for id in lost {
                index.execute(
                    "DELETE FROM chunks WHERE id = ?1 AND pack = ?2",
                    rusqlite::params![&id.0[..], number],
                )?;
            }
            Ok(())
        };
        self.0.index.write(drop_lost).await?;
        self.put_in_place(writer, manifests, pack.clone()).await?;
        Ok(mended)
    }

    /// Checks that every path can be put together as far as the index says, and says of those that cannot that they are
    /// broken.
    async fn verify_paths(&self, lost: &HashSet<ChunkId>, done: &mut Verified) -> Result<(), CacheError> {
        let mut after = 0;
        loop {
            let read = move |index: &rusqlite::Connection| {
                let mut statement = index.prepare_cached(
                    "SELECT path, manifest, recipe, broken FROM paths WHERE path > ?1 ORDER BY path LIMIT ?2",
                )?;
                let rows = statement.query_map([after, PATHS_AT_ONCE], |row| {
                    let broken = row.get::<_, bool>(3)?;
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, ChunkId(row.get(2)?), broken))
                })?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            };
            let rows = self.0.index.read(read).await?;
            let Some((last, ..)) = rows.last() else { return Ok(()) };
            after = *last;
            for (path, bytes, recipe, broken) in rows {
                done.paths += 1;
                let manifest = manifest::decode(&bytes);
                // Reading all recipes is as much work as reading their packs was: only where chunks are lost.
                let whole = match &manifest {
                    Ok(_) if broken => false,
                    Ok(_) if lost.is_empty() => true,
                    Ok(Manifest { lazy, .. }) => {
                        let listing = lazy.as_ref().map(|proof| proof.listing);
                        self.is_whole([Some(recipe), listing].into_iter().flatten().collect(), lost).await?
                    }
                    Err(_) => false,
                };
                if !whole {
                    self.0.index.write(move |index| Ok(paths::set_broken(index, path, true)?)).await?;
                    match manifest {
                        Ok(manifest) => done.paths_broken.push(manifest.info.path),
                        Err(error) => done.damage.push(Damage {
                            what: format!("manifest {path} of the index"),
                            object: self.0.index.path().display().to_string(),
                            message: error.to_string(),
                            repaired: false,
                        }),
                    }
                }
            }
        }
    }

    async fn is_whole(&self, recipes: Vec<ChunkId>, lost: &HashSet<ChunkId>) -> Result<bool, CacheError> {
        match self.read_recipes(recipes).await {
            Ok(recipes) => {
                let mut pieces = recipes.iter().flat_map(|recipe| &recipe.pieces);
                Ok(pieces.all(|piece| !lost.contains(&piece.id)))
            }
            Err(CacheError::Missing(_) | CacheError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put_in_place(
        &self,
        writer: PackWriter,
        manifests: Vec<paths::PathRow>,
        pack: Pack,
    ) -> Result<(), CacheError> {
        self.replace_packs(writer, vec![rewrite::Moved { from: pack.pack, manifests }], vec![pack])
            .await
            .map(drop)
    }
}

/// What another cache has of damaged chunks and recipes; each is checked, failures count as not there.
async fn fetch(remote: &dyn Remote, bad: &[(Kind, ChunkId)]) -> HashMap<ChunkId, StoredChunk> {
    let mut fetched = HashMap::new();
    for (kind, id) in bad {
        let chunk = match kind {
            Kind::Recipe => fetch_recipe(remote, *id).await.map(|(stored, _)| stored),
            Kind::Chunk | Kind::Manifest => fetch_chunk(remote, *id).await,
        };
        fetched.extend(chunk.map(|chunk| (*id, chunk)));
    }
    fetched
}

async fn fetch_chunk(remote: &dyn Remote, id: ChunkId) -> Option<StoredChunk> {
    let chunk = remote.chunks(vec![id]).await.ok()?.next().await?.ok()?;
    (chunk.id == id && chunk.check().is_ok()).then_some(chunk)
}

/// A recipe as it is stored, and what it says.
pub(super) async fn fetch_recipe(remote: &dyn Remote, id: ChunkId) -> Option<(StoredChunk, Recipe)> {
    let recipe = remote.recipes(&[id]).await.ok()?.pop()?;
    let plain = recipe.encode();
    let sound = ChunkId::of(&plain) == id;
    let stored = sound.then(|| StoredChunk::compress(id, &plain, crate::cut::CHUNK_LEVEL).ok()).flatten()?;
    Some((stored, recipe))
}

fn check_chunks(pack: &Pack, object: &bytes::Bytes, rows: Vec<Location>) -> Found {
    let mut found = Found { damage: Vec::new(), bad: Vec::new(), spoilt: false, checked: rows.len() as u64 };
    for location in rows {
        let result = if location.offset + u64::from(location.stored) > object.len() as u64 {
            Err("its pack is too short".to_owned())
        } else {
            let chunk = read::stored(&location, object, 0);
            let sound = if location.kind == Kind::Recipe {
                read::decode_recipe(&chunk).map(drop)
            } else {
                chunk.check().map(drop)
            };
            sound.map_err(|error| match error {
                CacheError::Damaged { message, .. } => message,
                other => other.to_string(),
            })
        };
        if let Err(message) = result {
            let noun = if location.kind == Kind::Recipe { "recipe" } else { "chunk" };
            let what = format!("{noun} {}", location.id);
            found.damage.push(Damage { what, object: pack.name.clone(), message, repaired: false });
            found.bad.push((location.kind, location.id));
            found.spoilt = true;
        }
    }
    found
}

/// Checks the manifests' frames, from which the index would be built.
fn check_manifests(
    pack: &Pack,
    object: &bytes::Bytes,
    entries: &[pack::Placed],
    found: &mut Found,
) -> Result<(), CacheError> {
    for (offset, entry) in entries.iter().filter(|(_, entry)| entry.kind == Kind::Manifest) {
        let end = offset + u64::from(entry.stored);
        let zstd = object.slice(*offset as usize..end as usize);
        let chunk = StoredChunk { id: entry.id, len: entry.plain, zstd };
        if let Err(error) = chunk.plain() {
            let (what, object) = (format!("manifest {}", entry.id), pack.name.clone());
            found.damage.push(Damage { what, object, message: error.message, repaired: false });
            found.spoilt = true;
        }
    }
    Ok(())
}
