//! Rows of paths, what they refer to, and pins.

use calve_nix::StorePath;
use rusqlite::{Connection, OptionalExtension, params};

use crate::chunk::ChunkId;

/// A path's row.
#[derive(Debug, Clone)]
pub struct PathRow {
    pub path: i64,
    pub manifest: Vec<u8>,
    pub recipe: ChunkId,
    /// `verify` found that chunks of it are lost.
    pub broken: bool,
    pub used_ms: i64,
}

const COLUMNS: &str = "path, manifest, recipe, broken, used_ms";

fn path_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<PathRow> {
    Ok(PathRow {
        path: row.get(0)?,
        manifest: row.get(1)?,
        recipe: ChunkId(row.get(2)?),
        broken: row.get(3)?,
        used_ms: row.get(4)?,
    })
}

/// The path with this hash part.
pub fn get(connection: &Connection, hash_part: &str) -> rusqlite::Result<Option<PathRow>> {
    let sql = format!("SELECT {COLUMNS} FROM paths WHERE hash_part = ?1");
    connection.prepare_cached(&sql)?.query_row([hash_part], path_row).optional()
}

/// Whether a path is known by a manifest that is no older than this time.
pub fn is_known_since(connection: &Connection, hash_part: &str, time_ms: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM paths JOIN packs USING (pack) WHERE hash_part = ?1 AND NOT broken AND made_ms >= ?2",
        )?
        .exists(params![hash_part, time_ms])
}

/// The path with this number.
pub fn get_number(connection: &Connection, path: i64) -> rusqlite::Result<Option<PathRow>> {
    let sql = format!("SELECT {COLUMNS} FROM paths WHERE path = ?1");
    connection.prepare_cached(&sql)?.query_row([path], path_row).optional()
}

/// The paths whose manifests lie in a pack.
pub fn in_pack(connection: &Connection, pack: i64) -> rusqlite::Result<Vec<PathRow>> {
    let sql = format!("SELECT {COLUMNS} FROM paths WHERE pack = ?1");
    connection.prepare_cached(&sql)?.query_map([pack], path_row)?.collect()
}

/// Adds a path, or replaces what is known of it, without its references; gives its number.
pub fn upsert(
    connection: &Connection,
    path: &StorePath,
    manifest: &[u8],
    recipe: &ChunkId,
    pack: i64,
    now_ms: i64,
) -> rusqlite::Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO paths (hash_part, manifest, recipe, pack, used_ms) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (hash_part) DO UPDATE SET manifest = excluded.manifest, recipe = excluded.recipe,
                 pack = excluded.pack, used_ms = max(used_ms, excluded.used_ms), broken = 0
             RETURNING path",
        )?
        .query_row(params![path.hash_part(), manifest, &recipe.0[..], pack, now_ms], |row| row.get(0))
}

/// Says what a path refers to; gives whether the reference is there.
pub fn insert_ref(connection: &Connection, path: i64, reference: &StorePath) -> rusqlite::Result<bool> {
    let target: Option<i64> = connection
        .prepare_cached("SELECT path FROM paths WHERE hash_part = ?1")?
        .query_row([reference.hash_part()], |row| row.get(0))
        .optional()?;
    let Some(target) = target else { return Ok(false) };
    connection
        .prepare_cached("INSERT OR IGNORE INTO refs (path, reference) VALUES (?1, ?2)")?
        .execute([path, target])?;
    Ok(true)
}

/// The numbers of a path with everything that it refers to.
pub fn closure(connection: &Connection, root: i64) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE closure (path) AS (
             SELECT ?1 UNION SELECT reference FROM refs JOIN closure USING (path)
         ) SELECT path FROM closure",
    )?;
    statement.query_map([root], |row| row.get(0))?.collect()
}

/// What a path refers to, as numbers.
pub fn references(connection: &Connection, path: i64) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached("SELECT reference FROM refs WHERE path = ?1")?;
    statement.query_map([path], |row| row.get(0))?.collect()
}

/// Says that a path was used, unless that was said since `since_ms`.
pub fn touch(connection: &Connection, path: i64, now_ms: i64, since_ms: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE paths SET used_ms = ?2 WHERE path = ?1 AND used_ms < ?3")?
        .execute([path, now_ms, since_ms])
        .map(drop)
}

/// Every path, the most recently used first: its number, its last use, and whether an unexpired pin holds it.
pub fn by_use(connection: &Connection, now_ms: i64) -> rusqlite::Result<Vec<(i64, i64, bool)>> {
    let mut statement = connection.prepare_cached(
        "SELECT path, used_ms, EXISTS (SELECT 1 FROM pins WHERE pins.hash_part = paths.hash_part
             AND (expires_ms IS NULL OR expires_ms > ?1)) AS pinned
         FROM paths ORDER BY pinned DESC, used_ms DESC, path DESC",
    )?;
    statement.query_map([now_ms], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// Removes a path that was not used since `before_ms` and that nothing refers to but itself; gives whether it was so.
pub fn remove_unused(connection: &Connection, path: i64, before_ms: i64) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM paths WHERE path = ?1 AND used_ms < ?2
         AND NOT EXISTS (SELECT 1 FROM refs WHERE reference = ?1 AND path <> ?1)",
    )?;
    let removed = statement.execute([path, before_ms])? == 1;
    if removed {
        connection.prepare_cached("DELETE FROM refs WHERE path = ?1")?.execute([path])?;
    }
    Ok(removed)
}

/// Says whether chunks of a path are lost.
pub fn set_broken(connection: &Connection, path: i64, broken: bool) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE paths SET broken = ?2 WHERE path = ?1")?
        .execute(params![path, broken])
        .map(drop)
}
