//! Rows of packs and chunks.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::cache::pack::{Kind, Placed};
use crate::chunk::ChunkId;

/// Where a chunk lies.
#[derive(Debug, Clone)]
pub struct Location {
    pub id: ChunkId,
    pub pack: i64,
    pub object: String,
    pub offset: u64,
    pub stored: u32,
    pub plain: u32,
    pub kind: Kind,
}

/// A pack.
#[derive(Debug, Clone)]
pub struct Pack {
    pub pack: i64,
    pub name: String,
    pub bytes: u64,
    /// How many manifests were written into it.
    pub manifests: u64,
    pub made_ms: i64,
}

const fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Chunk => 0,
        Kind::Recipe => 1,
        Kind::Manifest => 2,
    }
}

fn location(row: &Row<'_>) -> rusqlite::Result<Location> {
    Ok(Location {
        id: ChunkId(row.get(0)?),
        pack: row.get(1)?,
        object: row.get(2)?,
        offset: row.get::<_, i64>(3)? as u64,
        stored: row.get(4)?,
        plain: row.get(5)?,
        kind: if row.get::<_, i64>(6)? == 0 { Kind::Chunk } else { Kind::Recipe },
    })
}

/// Where these chunks lie, in the same order; none for those that are not there.
pub fn locate(connection: &Connection, ids: &[ChunkId]) -> rusqlite::Result<Vec<Option<Location>>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, pack, name, offset, stored, plain, kind FROM chunks JOIN packs USING (pack) WHERE id = ?1",
    )?;
    ids.iter().map(|id| statement.query_row([&id.0[..]], location).optional()).collect()
}

/// Whether a chunk is there.
pub fn contains(connection: &Connection, id: &ChunkId) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM chunks WHERE id = ?1")?.exists([&id.0[..]])
}

/// When a chunk was last said to be needed, in milliseconds since 1970, if it is there.
pub fn touched_ms(connection: &Connection, id: &ChunkId) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached("SELECT touched_ms FROM chunks WHERE id = ?1")?;
    statement.query_row([&id.0[..]], |row| row.get(0)).optional()
}

/// Says that a chunk is needed as of now; gives whether it is there.
pub fn touch(connection: &Connection, id: &ChunkId, now_ms: i64) -> rusqlite::Result<bool> {
    let mut statement =
        connection.prepare_cached("UPDATE chunks SET touched_ms = max(touched_ms, ?2) WHERE id = ?1")?;
    Ok(statement.execute(params![&id.0[..], now_ms])? == 1)
}

/// Says that a chunk is needed as of now, unless that was said since `since_ms`; gives whether it is there.
pub fn touch_since(
    connection: &Connection,
    id: &ChunkId,
    now_ms: i64,
    since_ms: i64,
) -> rusqlite::Result<bool> {
    match touched_ms(connection, id)? {
        None => Ok(false),
        Some(touched_ms) if touched_ms >= since_ms => Ok(true),
        Some(_) => touch(connection, id, now_ms),
    }
}

/// Adds a pack that was written, unless a rebuild was faster; gives its number.
pub fn insert_pack(
    connection: &Connection,
    name: &str,
    bytes: u64,
    entries: &[Placed],
    now_ms: i64,
) -> rusqlite::Result<i64> {
    let manifests = entries.iter().filter(|(_, entry)| entry.kind == Kind::Manifest).count();
    connection
        .prepare_cached(
            "INSERT INTO packs (name, bytes, manifests, made_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET made_ms = max(made_ms, excluded.made_ms) RETURNING pack",
        )?
        .query_row(params![name, bytes as i64, manifests as i64, now_ms], |row| row.get(0))
}

/// Adds the chunks and recipes of a pack, but for those that are there already.
pub fn insert_chunks(
    connection: &Connection,
    pack: i64,
    entries: &[Placed],
    now_ms: i64,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO chunks (id, pack, offset, stored, plain, kind, touched_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET touched_ms = max(touched_ms, excluded.touched_ms)",
    )?;
    for (offset, entry) in entries.iter().filter(|(_, entry)| entry.kind != Kind::Manifest) {
        statement.execute(params![
            &entry.id.0[..],
            pack,
            *offset as i64,
            entry.stored,
            entry.plain,
            kind_number(entry.kind),
            now_ms
        ])?;
    }
    Ok(())
}

/// Moves chunks that still lie in pack `from` to where a rewrite put them.
pub fn move_chunks(connection: &Connection, from: i64, to: i64, entries: &[Placed]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "UPDATE chunks SET pack = ?3, offset = ?4, stored = ?5 WHERE id = ?1 AND pack = ?2",
    )?;
    for (offset, entry) in entries.iter().filter(|(_, entry)| entry.kind != Kind::Manifest) {
        statement.execute(params![&entry.id.0[..], from, to, *offset as i64, entry.stored])?;
    }
    Ok(())
}

/// Forgets which of these chunks lie in a pack.
pub fn remove_chunks(connection: &Connection, pack: i64, entries: &[Placed]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("DELETE FROM chunks WHERE id = ?1 AND pack = ?2")?;
    entries.iter().try_for_each(|(_, entry)| statement.execute(params![&entry.id.0[..], pack]).map(drop))
}

/// Every pack, oldest first.
pub fn packs(connection: &Connection) -> rusqlite::Result<Vec<Pack>> {
    select_packs(connection, "true")
}

/// The packs with manifests that are no path's: it is gone, has another one, or the index has lost it.
pub fn packs_lacking_manifests(connection: &Connection) -> rusqlite::Result<Vec<Pack>> {
    select_packs(connection, "manifests > (SELECT count(*) FROM paths WHERE paths.pack = packs.pack)")
}

fn select_packs(connection: &Connection, which: &str) -> rusqlite::Result<Vec<Pack>> {
    let sql = format!("SELECT pack, name, bytes, manifests, made_ms FROM packs WHERE {which} ORDER BY pack");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Pack {
            pack: row.get(0)?,
            name: row.get(1)?,
            bytes: row.get::<_, i64>(2)? as u64,
            manifests: row.get::<_, i64>(3)? as u64,
            made_ms: row.get(4)?,
        })
    })?;
    rows.collect()
}

/// The pack with this object.
pub fn has_pack(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM packs WHERE name = ?1")?.exists([name])
}

/// The chunks and recipes that lie in a pack, by offset, with the time of their last touch.
pub fn in_pack(connection: &Connection, pack: i64) -> rusqlite::Result<Vec<(Location, i64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, pack, name, offset, stored, plain, kind, touched_ms
         FROM chunks JOIN packs USING (pack) WHERE pack = ?1 ORDER BY offset",
    )?;
    statement.query_map([pack], |row| Ok((location(row)?, row.get(7)?)))?.collect()
}

/// Removes a chunk that was not touched since `before_ms`.
pub fn remove_untouched(connection: &Connection, id: &ChunkId, before_ms: i64) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("DELETE FROM chunks WHERE id = ?1 AND touched_ms < ?2")?;
    Ok(statement.execute(params![&id.0[..], before_ms])? == 1)
}

/// Removes a pack in which nothing lies any more; gives whether it was so.
pub fn remove_empty_pack(connection: &Connection, pack: i64) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM packs WHERE pack = ?1 AND NOT EXISTS (SELECT 1 FROM chunks WHERE pack = ?1)
         AND NOT EXISTS (SELECT 1 FROM paths WHERE pack = ?1)",
    )?;
    Ok(statement.execute([pack])? == 1)
}
