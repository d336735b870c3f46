//! What this host could give instead of a cache: the recipes of paths that were pushed or pulled here, and in which of
//! them each chunk lies. It is a cache itself: wrong or lost entries cost a fetch, never a wrong byte.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calve_nix::{Sha256Hash, StorePath};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension};

use crate::Store;
use crate::chunk::ChunkId;
use crate::recipe::{Recipe, RecipeId};

/// How long an access waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Level of zstd for recipes: they are ids for the most part, which do not compress.
const RECIPE_LEVEL: i32 = 1;

/// One chunk's place: eight bytes of its id suffice as key, because whoever reads a chunk checks it, or what
/// he made of it.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS recipe (n INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, body BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS holder (
        path TEXT PRIMARY KEY, nar_hash BLOB NOT NULL, recipe INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS holder_recipe ON holder (recipe);
    CREATE TABLE IF NOT EXISTS chunk (
        key INTEGER PRIMARY KEY, recipe INTEGER NOT NULL, at INTEGER NOT NULL, len INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS chunk_recipe ON chunk (recipe);
    PRAGMA user_version = 1;";
const SCHEMA_VERSION: i64 = 1;

/// The index in one SQLite file. Calls block; it may be shared between threads and opened by many processes.
#[derive(Debug)]
pub struct LocalIndex {
    connection: Mutex<Connection>,
}

/// Where a chunk should lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// A number for the recipe, for [`LocalIndex::holders`] and [`LocalIndex::numbered`].
    pub recipe: i64,
    /// Where in its archive.
    pub at: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl LocalIndex {
    /// Opens the index at `path`, or begins one. A file that is damaged is begun anew.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let opened = connect(path).or_else(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                for suffix in ["", "-wal", "-shm"] {
                    let mut name = path.as_os_str().to_owned();
                    name.push(suffix);
                    match fs::remove_file(&name) {
                        Err(gone) if gone.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                connect(path)
            }
            _ => Err(error),
        });
        Ok(Self { connection: Mutex::new(opened?) })
    }

    /// The recipe with this id, if it was ever seen here.
    pub fn recipe(&self, id: &RecipeId) -> rusqlite::Result<Option<Recipe>> {
        let body = self
            .lock()
            .prepare_cached("SELECT body FROM recipe WHERE id = ?")?
            .query_row([&id.0], |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        Ok(body.and_then(|body| decode(&body)))
    }

    /// The recipe of a path's archive, if it was pushed or pulled here.
    pub fn recipe_of(&self, path: &StorePath, nar_hash: &Sha256Hash) -> rusqlite::Result<Option<Recipe>> {
        let sql = "SELECT body FROM holder JOIN recipe ON n = recipe WHERE path = ? AND nar_hash = ?";
        let body = self
            .lock()
            .prepare_cached(sql)?
            .query_row((path.base_name(), nar_hash.as_bytes()), |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        Ok(body.and_then(|body| decode(&body)))
    }

    /// The recipe with this number.
    pub fn numbered(&self, recipe: i64) -> rusqlite::Result<Option<Recipe>> {
        let body = self
            .lock()
            .prepare_cached("SELECT body FROM recipe WHERE n = ?")?
            .query_row([recipe], |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        Ok(body.and_then(|body| decode(&body)))
    }

    /// The paths whose archives have this recipe, the ones of last week perhaps among them.
    pub fn holders(&self, recipe: i64) -> rusqlite::Result<Vec<StorePath>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached("SELECT path FROM holder WHERE recipe = ?")?;
        let rows = statement.query_map([recipe], |row| row.get::<_, String>(0))?;
        let names: Vec<_> = rows.collect::<Result<_, _>>()?;
        Ok(names.iter().filter_map(|name| StorePath::from_base_name(name).ok()).collect())
    }

    /// Where these chunks should lie; those that are not known are left out.
    pub fn find<'a>(
        &self,
        ids: impl Iterator<Item = &'a ChunkId>,
    ) -> rusqlite::Result<HashMap<ChunkId, ChunkPlace>> {
        let connection = self.lock();
        let mut found = HashMap::new();
        if connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM chunk)", [], |row| row.get(0))? {
            return Ok(found);
        }
        // One transaction, so that the file is locked once instead of once a chunk.
        let transaction = connection.unchecked_transaction()?;
        let mut statement = transaction.prepare_cached("SELECT recipe, at, len FROM chunk WHERE key = ?")?;
        for id in ids {
            let place = statement.query_row([key(id)], |row| {
                Ok(ChunkPlace { recipe: row.get(0)?, at: row.get::<_, i64>(1)? as u64, len: row.get(2)? })
            });
            if let Some(place) = place.optional()? {
                found.insert(*id, place);
            }
        }
        Ok(found)
    }

    /// Notes paths whose files lie here, with their recipes.
    pub fn record<'a>(
        &self,
        paths: impl Iterator<Item = (&'a StorePath, &'a Sha256Hash, RecipeId, &'a Recipe)>,
    ) -> rusqlite::Result<()> {
        let connection = self.lock();
        let transaction = connection.unchecked_transaction()?;
        for (path, nar_hash, id, recipe) in paths {
            let known = transaction
                .prepare_cached("SELECT n FROM recipe WHERE id = ?")?
                .query_row([&id.0], |row| row.get::<_, i64>(0))
                .optional()?;
            let n = match known {
                Some(n) => n,
                None => add_recipe(&transaction, id, recipe)?,
            };
            transaction.prepare_cached("INSERT OR REPLACE INTO holder VALUES (?, ?, ?)")?.execute((
                path.base_name(),
                nar_hash.as_bytes(),
                n,
            ))?;
        }
        transaction.commit()
    }

    /// Forgets paths whose files are gone, and what only they held.
    pub fn prune(&self, store: &Store) -> rusqlite::Result<()> {
        let connection = self.lock();
        let transaction = connection.unchecked_transaction()?;
        {
            let mut paths = transaction.prepare("SELECT path FROM holder")?;
            let mut rows = paths.query([])?;
            let mut gone = Vec::new();
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                let here =
                    StorePath::from_base_name(&name).is_ok_and(|path| store.host_path_of(&path).is_some());
                if !here {
                    gone.push(name);
                }
            }
            let mut forget = transaction.prepare("DELETE FROM holder WHERE path = ?")?;
            for name in gone {
                forget.execute([name])?;
            }
        }
        transaction.execute_batch(
            "DELETE FROM recipe WHERE n NOT IN (SELECT recipe FROM holder);
             DELETE FROM chunk WHERE recipe NOT IN (SELECT n FROM recipe);",
        )?;
        transaction.commit()
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Nothing waits for the disk but a checkpoint, which is left to when the log has grown: what is lost with the power is
    // found out again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", "off")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        connection.execute_batch(SCHEMA)?;
    }
    connection.pragma_update(None, "synchronous", "normal")?;
    Ok(connection)
}

fn add_recipe(connection: &Connection, id: RecipeId, recipe: &Recipe) -> rusqlite::Result<i64> {
    let body = crate::encode::compressed(&recipe.encode(), RECIPE_LEVEL)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection.prepare_cached("INSERT INTO recipe (id, body) VALUES (?, ?)")?.execute((&id.0, &body[..]))?;
    let n = connection.last_insert_rowid();
    // The newest place of a chunk is the one that will be there longest.
    let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?)")?;
    let mut at: u64 = 0;
    for piece in &recipe.pieces {
        insert.execute((key(&piece.id), n, at as i64, piece.len))?;
        at += u64::from(piece.len);
    }
    Ok(n)
}

fn decode(body: &[u8]) -> Option<Recipe> {
    let plain = zstd::decode_all(body).ok()?;
    Recipe::decode(&plain).ok()
}

fn key(id: &ChunkId) -> i64 {
    i64::from_le_bytes(id.0[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Piece;

    #[test]
    fn what_was_recorded_is_found_and_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let file = dir.path().join("chunks.sqlite");
        fs::write(&file, "this is no database at all, but it lies where one should").unwrap();
        let index = LocalIndex::open(&file).unwrap();
        let path = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello").unwrap();
        let piece = |text: &str, len| Piece { id: ChunkId::of(text.as_bytes()), len };
        let recipe = Recipe { pieces: vec![piece("a", 60), piece("b", 40)], positions: vec![] };
        let hash = Sha256Hash::of(b"");
        for _ in 0..2 {
            index.record([(&path, &hash, recipe.id(), &recipe)].into_iter()).unwrap();
        }
        let ids = [recipe.pieces[1].id, ChunkId::of(b"other")];
        let found = index.find(ids.iter()).unwrap();
        let place = found[&ids[0]];
        assert_eq!((found.len(), place.at, place.len), (1, 60, 40));
        assert_eq!(index.holders(place.recipe).unwrap(), std::slice::from_ref(&path));
        assert_eq!(index.numbered(place.recipe).unwrap().as_ref(), Some(&recipe));
        assert_eq!(index.recipe(&recipe.id()).unwrap().as_ref(), Some(&recipe));
        assert_eq!(index.recipe_of(&path, &hash).unwrap().as_ref(), Some(&recipe));
        assert_eq!(index.recipe_of(&path, &Sha256Hash::of(b"x")).unwrap(), None);
        index.prune(&store).unwrap();
        assert_eq!(index.recipe(&recipe.id()).unwrap(), None);
        assert!(index.find(ids.iter()).unwrap().is_empty());
    }
}
