//! Where chunks wait between their arrival and the worker that needs them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::plan::Wanted;
use crate::chunk::{ChunkId, StoredChunk};
use crate::{StoreError, TransferError};

/// Most plain bytes of chunks on their way or waiting, in KiB: 64 MiB, which at 60 ms of round-trip time let 1 GB/s through.
pub(super) const IN_FLIGHT_KIB: usize = 64 * 1024;
/// And at first: 16 MiB, which do so at 16 ms. More from near would only wait here, in memory that is to be found first.
pub(super) const IN_FLIGHT_FIRST_KIB: usize = 16 * 1024;

/// Chunks that have arrived.
///
/// Chunks are let in, in the order in which they are needed first, while there is room; the worker on the earliest path
/// takes the earliest of them, so that there is always room for what it needs next.
pub(super) struct Slots {
    state: Mutex<State>,
    changed: Condvar,
    /// Room for chunks, in KiB: [`IN_FLIGHT_FIRST_KIB`], and what is added.
    pub room: Semaphore,
    /// Chunks that are needed again, as they came.
    spill: File,
    path: std::path::PathBuf,
}

#[derive(Default)]
struct State {
    arrived: HashMap<ChunkId, Vec<u8>>,
    spilled: HashMap<ChunkId, Spilled>,
    spill_end: u64,
    /// What each waiting worker waits for.
    awaited: Vec<ChunkId>,
    stopped: bool,
}

#[derive(Clone, Copy)]
struct Spilled {
    at: u64,
    stored_len: usize,
    len: u32,
}

/// Room in KiB that a chunk takes.
pub(super) fn room_of(len: u32) -> usize {
    len.div_ceil(1024) as usize
}

impl Slots {
    /// With a file at `spill` for what is needed again.
    pub fn new(spill: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(spill);
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            room: Semaphore::new(IN_FLIGHT_FIRST_KIB),
            spill: file.map_err(StoreError::io("write", spill))?,
            path: spill.to_owned(),
        })
    }

    /// Whether [`Self::copy`] need not wait.
    pub fn is_kept(&self, id: &ChunkId) -> bool {
        self.lock().spilled.contains_key(id)
    }

    /// Whether nothing waits here that has arrived.
    pub fn is_empty(&self) -> bool {
        self.lock().arrived.is_empty()
    }

    /// A chunk is there, for whom it is meant.
    pub fn put(&self, chunk: &StoredChunk, plain: Vec<u8>, wanted: &Wanted) -> Result<(), TransferError> {
        let mut state = self.lock();
        if wanted.again && !state.spilled.contains_key(&chunk.id) {
            let spilled = Spilled { at: state.spill_end, stored_len: chunk.zstd.len(), len: chunk.len };
            let written = self.spill.write_all_at(&chunk.zstd, spilled.at);
            written.map_err(StoreError::io("write", &self.path))?;
            state.spill_end += spilled.stored_len as u64;
            state.spilled.insert(chunk.id, spilled);
        }
        if wanted.first {
            state.arrived.insert(chunk.id, plain);
        }
        // Most chunks come before anybody waits for them: nobody is woken for those.
        if state.awaited.contains(&chunk.id) {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Waits for a chunk that is needed here first, and takes it.
    pub fn take(&self, id: &ChunkId) -> Result<Vec<u8>, TransferError> {
        let plain = self.wait(id, |state| state.arrived.remove(id))?;
        self.room.add_permits(room_of(plain.len() as u32));
        Ok(plain)
    }

    /// Waits for a chunk that is needed elsewhere first, and copies it.
    pub fn copy(&self, id: &ChunkId) -> Result<Vec<u8>, TransferError> {
        let spilled = self.wait(id, |state| state.spilled.get(id).copied())?;
        let mut zstd = vec![0; spilled.stored_len];
        self.spill.read_exact_at(&mut zstd, spilled.at).map_err(StoreError::io("read", &self.path))?;
        let chunk = StoredChunk { id: *id, len: spilled.len, zstd: zstd.into() };
        chunk.plain().map_err(|error| TransferError::Damaged {
            what: format!("chunk {id}"),
            cache: self.path.display().to_string(),
            message: error.message,
        })
    }

    /// Nothing comes any more: whoever waits gets [`TransferError::Cancelled`].
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn wait<T>(
        &self,
        id: &ChunkId,
        mut take: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, TransferError> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Err(TransferError::Cancelled);
            }
            if let Some(taken) = take(&mut state) {
                return Ok(taken);
            }
            state.awaited.push(*id);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            let at = state.awaited.iter().position(|awaited| awaited == id).expect("put there above");
            state.awaited.swap_remove(at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the slots when it goes.
pub(super) struct StopOnDrop(pub Arc<Slots>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
