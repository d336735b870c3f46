//! Logs on disk: one directory a machine, segment files of frames ([`calve_wire::frame::Frame::Log`]).
//!
//! ```text
//!  <dir>/<machine id>/00000000000000000001.log   frames of entry 1 and on; the name is the first entry's number
//!                     00000000000000004711.log   the last segment alone grows
//!                     console.log                what its console said, copied when it was destroyed
//!                     complete                   nothing will be added any more
//! ```
//! Entries are handed to the kernel and not forced to the disk: they survive the death of the server, not of the host.
//! What a reader sees was written; a reader reads from the files at its own pace and never holds up the writer.

pub mod console;
mod reader;
mod segments;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calve_core::MachineId;
use calve_wire::frame::{Channel, LogEntry};
use futures_util::stream::BoxStream;
use tokio::sync::{Semaphore, watch};

use reader::Reader;
use segments::Segments;

/// Most bytes of one machine's log; beyond it the oldest segment goes. A day of one line a second is some 10 MB.
pub const LOG_CAP_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes after which a new segment is begun: what is lost at once beyond the cap, and what is scanned when a log is
/// opened.
pub const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
/// Disk operations at once: enough to keep a disk busy, few enough that 1,000 chatty machines do not start 1,000 threads.
const DISK_OPERATIONS_MAX: usize = 8;

/// Sizes of logs.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Most bytes of one machine's log ([`LOG_CAP_BYTES`]).
    pub cap_bytes: u64,
    /// Bytes after which a new segment is begun ([`SEGMENT_BYTES`]); at most half of the cap is taken.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { cap_bytes: LOG_CAP_BYTES, segment_bytes: SEGMENT_BYTES }
    }
}

/// Which entries of a log; the default is all.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The first entry's number; 0 and 1 begin with the oldest that is left.
    pub from_seq: u64,
    /// Only entries that were made then or later, in milliseconds since the epoch.
    pub since_unix_ms: Option<u64>,
    /// Of what was asked for and is there already, only the last so many lines (of all channels together); what comes
    /// later comes in full.
    pub tail_lines: Option<u64>,
    /// Only these channels; all where there is none.
    pub channels: Vec<Channel>,
}

impl Query {
    fn takes(&self, entry: &LogEntry) -> bool {
        entry.seq >= self.from_seq
            && self.since_unix_ms.is_none_or(|since| entry.time_unix_ms >= since)
            && (self.channels.is_empty() || self.channels.contains(&entry.channel))
    }
}

/// Entries in the order of their numbers. Where numbers jump, the oldest entries were dropped for the cap (or a segment
/// could not be read).
pub type LogStream = BoxStream<'static, LogEntry>;

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The first of the entries does not follow the last kept one.
    #[error("log entry {found} came where {expected} was expected")]
    Gap {
        /// The number that was expected.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// No space is left.
    #[error("the log cannot be kept: no space left for {}: free some on that file system", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Anything else that the kernel said.
    #[error("the log file {} cannot be used", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The log was removed.
    #[error("the machine's log was removed")]
    Removed,
}

impl LogError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { path, source },
        }
    }
}

/// Every machine's log.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    options: LogOptions,
    disk: Arc<Semaphore>,
    machines: Mutex<HashMap<MachineId, Arc<MachineLog>>>,
}

/// One machine's log.
#[derive(Debug)]
struct MachineLog {
    dir: PathBuf,
    options: LogOptions,
    /// Held while writing: lock it only where blocking is allowed.
    segments: Mutex<Segments>,
    tip: watch::Sender<Tip>,
    disk: Arc<Semaphore>,
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, Default)]
struct Tip {
    last_seq: u64,
    size_bytes: u64,
    complete: bool,
    removed: bool,
}

impl Logs {
    /// The logs under `dir`, which is made with the first entry. Nothing is read before a machine's log is used.
    pub fn open(dir: PathBuf, options: LogOptions) -> Self {
        let segment_bytes = options.segment_bytes.clamp(1, (options.cap_bytes / 2).max(1));
        Self {
            dir,
            options: LogOptions { segment_bytes, ..options },
            disk: Arc::new(Semaphore::new(DISK_OPERATIONS_MAX)),
            machines: Mutex::default(),
        }
    }

    /// Appends entries; ones that are kept already are skipped. Blocks on the disk.
    ///
    /// # Errors
    /// A gap in the numbers, a full disk, or whatever the kernel said. What came before the failure is kept, so the same
    /// entries may be given again.
    pub fn append(&self, id: MachineId, entries: &[LogEntry]) -> Result<(), LogError> {
        self.machine(id)?.append(entries)
    }

    /// [`Self::append`] for async callers; gives the entries back with an error, for the next try.
    pub(crate) async fn append_async(
        self: &Arc<Self>,
        id: MachineId,
        entries: Vec<LogEntry>,
    ) -> Result<u64, (LogError, Vec<LogEntry>)> {
        let logs = self.clone();
        self.blocking(move || match logs.append(id, &entries).and_then(|()| logs.last_seq(id)) {
            Ok(last) => Ok(last),
            Err(error) => Err((error, entries)),
        })
        .await
    }

    /// The number of the last kept entry; 0 where there is none. The first use of a log reads its last segment.
    pub fn last_seq(&self, id: MachineId) -> Result<u64, LogError> {
        Ok(self.machine(id)?.tip.borrow().last_seq)
    }

    /// Bytes of the machine's log.
    pub fn size(&self, id: MachineId) -> Result<u64, LogError> {
        Ok(self.machine(id)?.tip.borrow().size_bytes)
    }

    /// The entries that are there now.
    pub async fn read(self: &Arc<Self>, id: MachineId, query: Query) -> Result<LogStream, LogError> {
        self.stream(id, query, false).await
    }

    /// The entries that are there now, and then those that come, until the log is complete ([`Self::finish`]) or removed.
    pub async fn follow(self: &Arc<Self>, id: MachineId, query: Query) -> Result<LogStream, LogError> {
        self.stream(id, query, true).await
    }

    async fn stream(
        self: &Arc<Self>,
        id: MachineId,
        query: Query,
        live: bool,
    ) -> Result<LogStream, LogError> {
        let logs = self.clone();
        let machine = self.blocking(move || logs.machine(id)).await?;
        Ok(Reader::new(machine, query, live).into_stream())
    }

    /// Notes for good that nothing will be added any more: followers end behind the last entry. May be repeated.
    pub fn finish(&self, id: MachineId) -> Result<(), LogError> {
        self.machine(id)?.finish()
    }

    /// Removes the machine's log; followers end. Absence is success. Gives the bytes that were freed.
    pub fn remove(&self, id: MachineId) -> Result<u64, LogError> {
        let machine = self.machine(id)?;
        let freed = machine.remove()?;
        lock(&self.machines).remove(&id);
        Ok(freed)
    }

    /// Every machine that has a log on disk.
    pub fn machines(&self) -> Result<Vec<MachineId>, LogError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| LogError::io(&self.dir, error))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// [`Self::last_seq`] for async callers.
    pub(crate) async fn last_seq_async(self: &Arc<Self>, id: MachineId) -> Result<u64, LogError> {
        let logs = self.clone();
        self.blocking(move || logs.last_seq(id)).await
    }

    /// Notes that the entries before `next_seq` will never come: the log goes on there, and readers see the jump.
    pub fn skip_to(&self, id: MachineId, next_seq: u64) -> Result<(), LogError> {
        self.machine(id)?.skip_to(next_seq);
        Ok(())
    }

    fn machine(&self, id: MachineId) -> Result<Arc<MachineLog>, LogError> {
        // Held while loading: two loaders of one log could cut off what the other has just appended.
        let mut machines = lock(&self.machines);
        if let Some(machine) = machines.get(&id) {
            return Ok(machine.clone());
        }
        let machine =
            Arc::new(MachineLog::load(self.dir.join(id.to_string()), self.options, self.disk.clone())?);
        machines.insert(id, machine.clone());
        Ok(machine)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        blocking(&self.disk, work).await
    }
}

impl MachineLog {
    fn load(dir: PathBuf, options: LogOptions, disk: Arc<Semaphore>) -> Result<Self, LogError> {
        let segments = Segments::load(&dir)?;
        let tip = Tip {
            last_seq: segments.last_seq(),
            size_bytes: segments.size_bytes(),
            complete: dir.join("complete").exists(),
            removed: false,
        };
        Ok(Self { dir, options, segments: Mutex::new(segments), tip: watch::Sender::new(tip), disk })
    }

    fn append(&self, entries: &[LogEntry]) -> Result<(), LogError> {
        let mut segments = lock(&self.segments);
        if self.tip.borrow().removed {
            return Err(LogError::Removed);
        }
        let result = segments.append(&self.dir, &self.options, entries);
        // Also after a failure: what came before it is kept.
        self.tip.send_modify(|tip| {
            tip.last_seq = segments.last_seq();
            tip.size_bytes = segments.size_bytes();
        });
        result
    }

    fn finish(&self) -> Result<(), LogError> {
        if !self.tip.borrow().complete {
            // Followers end even where the marker cannot be written: nobody is going to add anything.
            self.tip.send_modify(|tip| tip.complete = true);
            segments::make_dir(&self.dir)?;
            let path = self.dir.join("complete");
            std::fs::write(&path, "").map_err(|error| LogError::io(&path, error))?;
        }
        Ok(())
    }

    fn skip_to(&self, next_seq: u64) {
        // The tip stays: it is the last entry that there is.
        lock(&self.segments).skip_to(next_seq);
    }

    fn remove(&self) -> Result<u64, LogError> {
        let mut segments = lock(&self.segments);
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LogError::io(&self.dir, error));
            }
            _ => {}
        }
        let freed = segments.size_bytes();
        *segments = Segments::default();
        self.tip.send_modify(|tip| *tip = Tip { removed: true, complete: true, ..Tip::default() });
        Ok(freed)
    }
}

/// Runs what may wait for the disk on a thread where that holds up nobody.
async fn blocking<T: Send + 'static>(disk: &Semaphore, work: impl FnOnce() -> T + Send + 'static) -> T {
    let _permit = disk.acquire().await.expect("the semaphore is never closed");
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The lock's content; a panic elsewhere does not make it unusable, as every change is made whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
