//! What a cache holds, for people.

use super::{Cache, CacheError};

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Paths that can be put together.
    pub paths: u64,
    /// Chunks and recipes.
    pub chunks: u64,
    /// Their bytes as stored.
    pub chunk_bytes: u64,
}

impl Cache {
    /// Counts what the cache holds; takes longer the more that is.
    pub async fn stats(&self) -> Result<Stats, CacheError> {
        let count = |index: &rusqlite::Connection| {
            let paths =
                index.query_row("SELECT count(*) FROM paths WHERE NOT broken", [], |row| row.get(0))?;
            let (chunks, bytes): (i64, i64) =
                index.query_row("SELECT count(*), coalesce(sum(stored), 0) FROM chunks", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            let paths: i64 = paths;
            Ok(Stats { paths: paths as u64, chunks: chunks as u64, chunk_bytes: bytes as u64 })
        };
        self.0.index.read(count).await
    }
}
