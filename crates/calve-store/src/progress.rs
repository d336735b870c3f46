//! How far a push or pull has come, for whoever draws it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that grow while a push or pull goes on; they may be read at any time, from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Paths of the closure.
    pub paths: Counter,
    /// Paths that need not move: the other side has them.
    pub paths_present: Counter,
    /// Paths that have moved and are in place.
    pub paths_done: Counter,
    /// Bytes of the archives of the paths that move.
    pub archive_bytes: Counter,
    /// Bytes of these archives that have been read (push) or written (pull).
    pub archive_bytes_done: Counter,
    /// Chunks of the paths that move.
    pub chunks: Counter,
    /// Chunks that did not travel: the other side, or on a pull this host, had them.
    pub chunks_present: Counter,
    /// Chunks that travelled.
    pub chunks_moved: Counter,
    /// Bytes of chunks and recipes that travelled, compressed.
    pub bytes_moved: Counter,
    /// Requests that were tried again.
    pub retries: Counter,
}

/// One growing number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes over what somebody else has counted.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Lets it grow.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}
