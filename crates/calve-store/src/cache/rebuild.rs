//! Building the index anew from the packs.

use std::sync::Arc;

use futures_util::TryStreamExt;

use super::index::{self, WriteError, chunks, paths};
use super::nar::Assembly;
use super::objects::Listed;
use super::pack::{self, FOOTER_BYTES, Kind};
use super::{Cache, CacheError, manifest, now_ms};
use crate::chunk::StoredChunk;

/// Bytes of a pack's end that are read first: nearly always all of its contents' list.
const END_BYTES: u64 = 32 << 10;
/// The object that says to which cache the others belong.
const OWNER: &str = "cache-id";
/// Bytes of that id.
const OWNER_BYTES: usize = 16;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Packs that were read.
    pub packs: u64,
    /// Paths that are there now.
    pub paths: u64,
    /// Paths whose chunks or references are gone.
    pub paths_lost: u64,
    /// Packs that could not be read, each with the reason.
    pub damaged: Vec<String>,
}

impl Cache {
    /// Builds rows for all packs that the index does not know, and for the paths in them.
    pub async fn rebuild(&self) -> Result<Rebuilt, CacheError> {
        let _lock = self.lock("gc.lock", "collects garbage or rebuilds the index")?;
        self.rebuild_locked().await
    }

    async fn rebuild_locked(&self) -> Result<Rebuilt, CacheError> {
        let mut objects: Vec<Listed> = self.0.objects.list("packs").try_collect().await?;
        // What was written last counts: a path's manifest may have been written again with more signatures.
        objects.sort_by_key(|object| object.made_ms);
        let mut done = Rebuilt::default();
        for object in objects {
            let name = object.name.clone();
            if self.0.index.read(move |index| chunks::has_pack(index, &name)).await? {
                continue;
            }
            done.packs += 1;
            match self.adopt(&object).await {
                Err(CacheError::Damaged { what, message }) => done.damaged.push(format!("{what}: {message}")),
                result => result?,
            }
        }
        self.revive(&mut done).await?;
        Ok(done)
    }

    /// Makes the rows of a pack; its paths are not seen yet.
    async fn adopt(&self, object: &Listed) -> Result<(), CacheError> {
        let end = self.end_of(object, END_BYTES).await?;
        let footer = end.len().saturating_sub(FOOTER_BYTES);
        let len = pack::contents_len(&end[footer..], &object.name)? as u64;
        let end = if len > end.len() as u64 { self.end_of(object, len).await? } else { end };
        let (entries, _) = pack::read_contents(&end, object.bytes, &object.name)?;
        let mut manifests = Vec::new();
        for (offset, entry) in entries.iter().filter(|(_, entry)| entry.kind == Kind::Manifest) {
            let zstd = self.0.objects.range(&object.name, *offset, entry.stored.into()).await?;
            let chunk = StoredChunk { id: entry.id, len: entry.plain, zstd };
            let plain = chunk.check()?;
            manifests.push((manifest::decode(&plain)?, plain));
        }
        let (name, bytes) = (object.name.clone(), object.bytes);
        self.0
            .index
            .write(move |index| {
                let now_ms = now_ms();
                let pack = chunks::insert_pack(index, &name, bytes, &entries, now_ms)?;
                chunks::insert_chunks(index, pack, &entries, now_ms)?;
                for (manifest, plain) in manifests {
                    let path = &manifest.info.path;
                    let number = paths::upsert(index, path, &plain, &manifest.recipe, pack, now_ms)?;
                    paths::set_broken(index, number, true)?;
                }
                Ok(())
            })
            .await
    }

    async fn end_of(&self, object: &Listed, bytes: u64) -> Result<bytes::Bytes, CacheError> {
        let bytes = bytes.min(object.bytes);
        self.0.objects.range(&object.name, object.bytes - bytes, bytes).await
    }

    /// Shows the paths that have all their chunks and references, and removes the others.
    async fn revive(&self, done: &mut Rebuilt) -> Result<(), CacheError> {
        let hidden = |index: &rusqlite::Connection| {
            let mut statement = index.prepare("SELECT path FROM paths WHERE broken ORDER BY path")?;
            statement.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut whole = Vec::new();
        for path in self.0.index.read(hidden).await? {
            if self.link(path).await? {
                whole.push(path);
            }
        }
        let result = self.0.index.write(move |index| show(index, &whole)).await?;
        (done.paths, done.paths_lost) = result;
        Ok(())
    }

    /// Makes the rows of a path's references; gives whether these and its chunks are there.
    async fn link(&self, path: i64) -> Result<bool, CacheError> {
        let row = self.0.index.read(move |index| paths::get_number(index, path)).await?;
        let Some(row) = row else { return Ok(false) };
        let manifest = manifest::decode(&row.manifest)?;
        let listing = manifest.lazy.as_ref().map(|proof| proof.listing);
        let ids = [Some(row.recipe), listing].into_iter().flatten().collect();
        let Ok(recipes) = self.read_recipes(ids).await else { return Ok(false) };
        if Assembly::new(&manifest, Arc::new(recipes[0].clone())).is_err() {
            return Ok(false);
        }
        let link = move |index: &rusqlite::Transaction<'_>| {
            for piece in recipes.iter().flat_map(|recipe| &recipe.pieces) {
                if !chunks::contains(index, &piece.id)? {
                    return Ok(false);
                }
            }
            for reference in &manifest.info.references {
                if !paths::insert_ref(index, path, reference)? {
                    return Ok::<_, WriteError>(false);
                }
            }
            Ok(true)
        };
        self.0.index.write(link).await
    }

    /// Checks that the objects belong to this index; one that is new, or was not finished, is built from them.
    pub(super) async fn check_owner(&self, made: bool) -> Result<(), CacheError> {
        let read = |index: &rusqlite::Connection| {
            Ok((index::meta(index, OWNER)?, index::meta(index, "complete")?.is_some()))
        };
        let (known, complete) = self.0.index.read(read).await?;
        let owner = match self.0.objects.get(OWNER).await {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(error),
        };
        if complete && !made {
            if known == owner {
                return Ok(());
            }
            let index = self.0.index.path().to_owned();
            return Err(CacheError::Foreign { index, objects: self.storage().to_owned() });
        }
        // Others that open it for the first time wait for the lock.
        let _lock = super::blocking({
            let this = self.clone();
            move || this.wait_lock("gc.lock")
        })
        .await?;
        let owner = match owner {
            Some(owner) => owner,
            None => {
                let mut random = [0; OWNER_BYTES];
                super::keys::random(&mut random)?;
                known.unwrap_or_else(|| random.iter().map(|byte| format!("{byte:02x}")).collect())
            }
        };
        let id = owner.clone();
        let keep = move |index: &rusqlite::Transaction<'_>| {
            index.execute("INSERT OR IGNORE INTO meta VALUES (?1, ?2)", [OWNER, &id])?;
            Ok(index::meta(index, OWNER)?.unwrap_or(id))
        };
        let owner = self.0.index.write(keep).await?;
        self.0.objects.put(OWNER, owner.into_bytes().into()).await?;
        let done = self.rebuild_locked().await?;
        if done.packs > 0 {
            tracing::info!(
                packs = done.packs,
                paths = done.paths,
                lost = done.paths_lost,
                "index built anew"
            );
        }
        self.0.index.write(|index| Ok(index::set_meta(index, "complete", "1")?)).await
    }

    fn wait_lock(&self, name: &str) -> Result<std::fs::File, CacheError> {
        let path = self.0.dir.join(name);
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(CacheError::io("write", &path))?;
        file.lock().map_err(CacheError::io("lock", &path))?;
        Ok(file)
    }
}

/// Shows paths that are whole, but for those that refer to one that is not; removes the latter.
fn show(index: &rusqlite::Connection, whole: &[i64]) -> Result<(u64, u64), WriteError> {
    for path in whole {
        paths::set_broken(index, *path, false)?;
    }
    loop {
        let hidden = index.execute(
            "UPDATE paths SET broken = 1 WHERE NOT broken AND path IN (
                 SELECT refs.path FROM refs JOIN paths AS target ON target.path = refs.reference
                 WHERE target.broken)",
            [],
        )?;
        if hidden == 0 {
            break;
        }
    }
    index.execute("DELETE FROM refs WHERE path IN (SELECT path FROM paths WHERE broken)", [])?;
    let lost = index.execute("DELETE FROM paths WHERE broken", [])? as u64;
    let paths: i64 = index.query_row("SELECT count(*) FROM paths", [], |row| row.get(0))?;
    Ok((paths as u64, lost))
}
