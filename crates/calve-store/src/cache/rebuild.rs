//! Building the index anew from the packs.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::TryStreamExt;

use super::index::chunks::Pack;
use super::index::{self, WriteError, chunks, paths};
use super::nar::Assembly;
use super::objects::Listed;
use super::pack::{self, FOOTER_BYTES, Kind, Placed};
use super::{Cache, CacheError, manifest, now_ms};
use crate::chunk::StoredChunk;
use crate::remote::Manifest;

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

/// The frames of a pack, and its manifests with their bytes.
type Contents = (Vec<Placed>, Vec<(Manifest, Vec<u8>)>);

impl Cache {
    /// Builds rows for all packs that the index does not know, and for the paths in them.
    pub async fn rebuild(&self) -> Result<Rebuilt, CacheError> {
        let _lock = self.lock("gc.lock", "collects garbage or rebuilds the index")?;
        self.rebuild_locked().await
    }

    /// Whoever calls this holds the lock.
    async fn rebuild_locked(&self) -> Result<Rebuilt, CacheError> {
        let mut done = Rebuilt::default();
        let mut adopted = self.adopt_unknown(&mut done).await?;
        let hidden = |index: &rusqlite::Connection| {
            let mut statement = index.prepare("SELECT path FROM paths WHERE broken ORDER BY path")?;
            statement.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        // Also those of a rebuild that was broken off.
        adopted.extend(self.0.index.read(hidden).await?);
        self.revive(adopted, &mut done).await?;
        Ok(done)
    }

    /// Brings back the paths of which packs hold the manifests and the index knows nothing: who died between the two was about to
    /// make their rows, and damage to its files can take it back to an earlier state that SQLite takes for whole. Gives how many
    /// came back. Whoever calls this holds the lock.
    pub(super) async fn restore_lost(&self) -> Result<u64, CacheError> {
        let count = |index: &rusqlite::Connection| {
            index.query_row("SELECT count(*) FROM paths WHERE NOT broken", [], |row| row.get::<_, i64>(0))
        };
        let before = self.0.index.read(count).await?;
        let mut done = Rebuilt::default();
        let mut adopted = Vec::new();
        for pack in self.0.index.read(chunks::packs_lacking_manifests).await? {
            match self.adopt_again(pack).await {
                // That is for `verify` to name.
                Err(error) if error.is_gone() || matches!(error, CacheError::Damaged { .. }) => {}
                result => adopted.extend(result?),
            }
        }
        if self.is_any_unknown().await? {
            adopted.extend(self.adopt_unknown(&mut done).await?);
        }
        if adopted.is_empty() {
            return Ok(0);
        }
        self.revive(adopted, &mut done).await?;
        let restored = self.0.index.read(count).await? - before;
        if restored > 0 {
            tracing::warn!(
                paths = restored,
                "packs held paths that the index did not know; they are there again"
            );
        }
        Ok(restored.max(0) as u64)
    }

    /// Whether a pack that the index does not know holds a manifest of a path that it does not know.
    async fn is_any_unknown(&self) -> Result<bool, CacheError> {
        let mut listed = self.0.objects.list("packs");
        while let Some(object) = listed.try_next().await? {
            let name = object.name.clone();
            if self.0.index.read(move |index| chunks::has_pack(index, &name)).await? {
                continue;
            }
            let manifests = match self.contents(&object.name, object.bytes).await {
                Err(error) if error.is_gone() || matches!(error, CacheError::Damaged { .. }) => continue,
                contents => contents?.1,
            };
            for (manifest, _) in manifests {
                let path = manifest.info.path;
                let known = move |index: &rusqlite::Connection| paths::get(index, path.hash_part());
                if self.0.index.read(known).await?.is_none() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Makes the rows of all packs that have none; gives their paths, which are not seen yet.
    async fn adopt_unknown(&self, done: &mut Rebuilt) -> Result<Vec<i64>, CacheError> {
        let known = self.0.index.read(chunks::packs).await?;
        let mut objects: Vec<Listed> = self.0.objects.list("packs").try_collect().await?;
        let listed: HashSet<_> = objects.iter().map(|object| object.name.as_str()).collect();
        // Rows of a former time: what they speak of lies in packs that are not known yet.
        let gone = known.iter().filter(|pack| !listed.contains(pack.name.as_str())).map(|pack| pack.pack);
        let gone: Arc<[i64]> = gone.collect();
        // What was written last counts: a path's manifest may have been written again with more signatures.
        objects.sort_by_key(|object| object.made_ms);
        let mut adopted = Vec::new();
        for object in objects {
            let name = object.name.clone();
            if self.0.index.read(move |index| chunks::has_pack(index, &name)).await? {
                continue;
            }
            match self.adopt(&object, gone.clone()).await {
                Err(error) if error.is_gone() => continue,
                Err(CacheError::Damaged { what, message }) => done.damaged.push(format!("{what}: {message}")),
                result => adopted.extend(result?),
            }
            done.packs += 1;
        }
        Ok(adopted)
    }

    /// Makes the rows of a pack; gives its paths, which are not seen yet.
    async fn adopt(&self, object: &Listed, gone: Arc<[i64]>) -> Result<Vec<i64>, CacheError> {
        let (entries, manifests) = self.contents(&object.name, object.bytes).await?;
        let object = object.clone();
        self.0
            .index
            .write(move |index| {
                // Whoever wrote it has just made its rows.
                if chunks::has_pack(index, &object.name)? {
                    return Ok(Vec::new());
                }
                let now_ms = now_ms();
                let pack = chunks::insert_pack(index, &object.name, object.bytes, &entries, now_ms)?;
                for pack in gone.iter() {
                    chunks::remove_chunks(index, *pack, &entries)?;
                }
                chunks::insert_chunks(index, pack, &entries, now_ms)?;
                let mut adopted = Vec::new();
                for (manifest, plain) in manifests {
                    let path = &manifest.info.path;
                    if paths::is_known_since(index, path.hash_part(), object.made_ms)? {
                        continue;
                    }
                    let number = paths::upsert(index, path, &plain, &manifest.recipe, pack, now_ms)?;
                    paths::set_broken(index, number, true)?;
                    adopted.push(number);
                }
                Ok(adopted)
            })
            .await
    }

    /// Makes the rows that a known pack lacks; gives its paths that were not known, which are not seen yet.
    async fn adopt_again(&self, pack: Pack) -> Result<Vec<i64>, CacheError> {
        let (entries, manifests) = self.contents(&pack.name, pack.bytes).await?;
        self.0
            .index
            .write(move |index| {
                let now_ms = now_ms();
                let mut adopted = Vec::new();
                for (manifest, plain) in manifests {
                    let path = &manifest.info.path;
                    if chunks::has_pack(index, &pack.name)? && paths::get(index, path.hash_part())?.is_none()
                    {
                        let number = paths::upsert(index, path, &plain, &manifest.recipe, pack.pack, now_ms)?;
                        paths::set_broken(index, number, true)?;
                        adopted.push(number);
                    }
                }
                if !adopted.is_empty() {
                    chunks::insert_chunks(index, pack.pack, &entries, now_ms)?;
                }
                Ok(adopted)
            })
            .await
    }

    /// What a pack holds, and its manifests with their bytes.
    async fn contents(&self, name: &str, bytes: u64) -> Result<Contents, CacheError> {
        if bytes < FOOTER_BYTES as u64 {
            return Err(CacheError::damaged(format!("pack {name}"), "it is too short"));
        }
        let end = self.end_of(name, bytes, END_BYTES).await?;
        let footer = end.len().saturating_sub(FOOTER_BYTES);
        let len = pack::contents_len(&end[footer..], name)? as u64;
        let end = if len > end.len() as u64 { self.end_of(name, bytes, len).await? } else { end };
        let (entries, _) = pack::read_contents(&end, bytes, name)?;
        let mut manifests = Vec::new();
        for (offset, entry) in entries.iter().filter(|(_, entry)| entry.kind == Kind::Manifest) {
            let zstd = self.0.objects.range(name, *offset, entry.stored.into()).await?;
            let chunk = StoredChunk { id: entry.id, len: entry.plain, zstd };
            let plain = chunk.check()?;
            manifests.push((manifest::decode(&plain)?, plain));
        }
        Ok((entries, manifests))
    }

    async fn end_of(&self, name: &str, of: u64, bytes: u64) -> Result<bytes::Bytes, CacheError> {
        let bytes = bytes.min(of);
        self.0.objects.range(name, of - bytes, bytes).await
    }

    /// Shows those of these paths that have all their chunks and references, and removes the others.
    async fn revive(&self, adopted: Vec<i64>, done: &mut Rebuilt) -> Result<(), CacheError> {
        let mut whole = Vec::new();
        for path in &adopted {
            if self.link(*path).await? {
                whole.push(*path);
            }
        }
        let result = self.0.index.write(move |index| show(index, &adopted, &whole)).await?;
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

/// Shows those of `adopted` that are whole, but for those that refer to one that is not; removes the latter.
fn show(index: &rusqlite::Connection, adopted: &[i64], whole: &[i64]) -> Result<(u64, u64), WriteError> {
    index.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS adopted (path INTEGER PRIMARY KEY); DELETE FROM temp.adopted;",
    )?;
    for path in adopted {
        index.prepare_cached("INSERT OR IGNORE INTO temp.adopted VALUES (?1)")?.execute([path])?;
    }
    for path in whole {
        paths::set_broken(index, *path, false)?;
    }
    loop {
        let hidden = index.execute(
            "UPDATE paths SET broken = 1 WHERE NOT broken AND path IN temp.adopted AND path IN (
                 SELECT refs.path FROM refs JOIN paths AS target ON target.path = refs.reference
                 WHERE target.broken)",
            [],
        )?;
        if hidden == 0 {
            break;
        }
    }
    let lost = "SELECT path FROM paths WHERE broken AND path IN temp.adopted";
    index.execute(&format!("DELETE FROM refs WHERE path IN ({lost})"), [])?;
    let lost = index.execute(&format!("DELETE FROM paths WHERE path IN ({lost})"), [])? as u64;
    let paths: i64 = index.query_row("SELECT count(*) FROM paths", [], |row| row.get(0))?;
    Ok((paths as u64, lost))
}
