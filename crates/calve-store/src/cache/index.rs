//! The index: where every chunk lies, which paths there are, when they were last used. It can be built anew from the
//! packs; several processes may have it open.

pub(super) mod chunks;
pub(super) mod paths;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::CacheError;

/// How long a query waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that are kept for readers; more are opened when needed and closed afterwards.
const IDLE_READERS_MAX: usize = 8;
/// Prepared statements that each connection keeps.
const STATEMENTS_MAX: usize = 64;
/// Pages of the index that each connection keeps in memory, in KiB: the upper levels of its trees for a million paths.
const PAGE_CACHE_KIB: i64 = 4096;

/// The version of the tables; another one is built anew from the packs.
pub(super) const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE packs (
    pack INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    manifests INTEGER NOT NULL,
    made_ms INTEGER NOT NULL
);
CREATE TABLE chunks (
    id BLOB PRIMARY KEY,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    plain INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX chunks_of_pack ON chunks (pack, offset);
CREATE TABLE paths (
    path INTEGER PRIMARY KEY AUTOINCREMENT,
    hash_part TEXT NOT NULL UNIQUE,
    manifest BLOB NOT NULL,
    recipe BLOB NOT NULL,
    pack INTEGER NOT NULL,
    broken INTEGER NOT NULL DEFAULT 0,
    used_ms INTEGER NOT NULL
);
CREATE INDEX paths_of_pack ON paths (pack);
CREATE TABLE refs (
    path INTEGER NOT NULL,
    reference INTEGER NOT NULL,
    PRIMARY KEY (path, reference)
) WITHOUT ROWID;
CREATE INDEX referrers ON refs (reference, path);
CREATE TABLE pins (
    name TEXT NOT NULL,
    hash_part TEXT NOT NULL,
    expires_ms INTEGER,
    PRIMARY KEY (name, hash_part)
) WITHOUT ROWID;
CREATE TABLE uploads (
    name TEXT PRIMARY KEY,
    hash_part TEXT NOT NULL,
    made_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// The index of one cache; clones share it.
#[derive(Clone)]
pub(super) struct Index(Arc<Inner>);

struct Inner {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    writer: Mutex<Connection>,
}

/// The index of a cache with this directory.
pub(super) fn file(dir: &Path) -> PathBuf {
    dir.join("index.sqlite")
}

impl Index {
    /// Opens the index, or makes an empty one; tells which.
    pub fn open(path: &Path) -> Result<(Self, bool), CacheError> {
        let failed = |source| CacheError::Index { path: path.to_owned(), source };
        let mut writer = connect(path).map_err(failed)?;
        let made = prepare(&mut writer).map_err(failed)?;
        let version: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if version != SCHEMA_VERSION {
            let message = format!("it has version {version}, and this calve reads {SCHEMA_VERSION}");
            return Err(CacheError::damaged(format!("the index {}", path.display()), message));
        }
        let inner = Inner { path: path.to_owned(), idle: Mutex::default(), writer: Mutex::new(writer) };
        Ok((Self(Arc::new(inner)), made))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Reads on a blocking thread.
    pub async fn read<T, F>(&self, query: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let this = self.clone();
        super::blocking(move || this.read_now(query)).await
    }

    /// Reads on this thread.
    pub fn read_now<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let failed = |source| CacheError::Index { path: self.0.path.clone(), source };
        let idle = || self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let connection = kept.map_or_else(|| connect(&self.0.path), Ok).map_err(failed)?;
        let result = query(&connection);
        let mut idle = idle();
        if idle.len() < IDLE_READERS_MAX {
            idle.push(connection);
        }
        result.map_err(failed)
    }

    /// Writes on a blocking thread, all or nothing.
    pub async fn write<T, F>(&self, change: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, WriteError> + Send + 'static,
    {
        let this = self.clone();
        super::blocking(move || this.write_now(change)).await
    }

    /// As [`Self::read_now`], by the connection that writes: what was written here of late it has in memory.
    pub fn read_warm<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let failed = |source| CacheError::Index { path: self.0.path.clone(), source };
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Deferred).map_err(failed)?;
        query(&transaction).map_err(failed)
    }

    /// Writes on this thread, all or nothing. Waits for other writers, also of other processes.
    pub fn write_now<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, WriteError>,
    ) -> Result<T, CacheError> {
        let failed = |source| CacheError::Index { path: self.0.path.clone(), source };
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        match change(&transaction) {
            Ok(value) => transaction.commit().map(|()| value).map_err(failed),
            Err(WriteError::Sql(source)) => Err(failed(source)),
            Err(WriteError::Refused(error)) => Err(error),
        }
    }
}

/// Why a change to the index was not made.
pub(super) enum WriteError {
    Sql(rusqlite::Error),
    Refused(CacheError),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // Whoever was told that a path is there relies on it after a power failure, too.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Makes the tables where there are none.
fn prepare(writer: &mut Connection) -> rusqlite::Result<bool> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()?;
    Ok(tables == 0)
}

/// The value of a key that belongs to the whole cache.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension;
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

/// Sets the value of a key that belongs to the whole cache.
pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", [key, value]).map(drop)
}
