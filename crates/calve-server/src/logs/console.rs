//! Machines' consoles: the file that a driver's supervisor fills while the machine lives, and the copy that is kept with the
//! machine's log afterwards.
//!
//! A console has no numbers and no times of its own: its entries are numbered as they are read, and bear the time at which
//! the file was written last.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use calve_core::MachineId;
use calve_wire::frame::{Channel, LogEntry};
use calve_wire::guard::{CONSOLE_KEPT_BYTES, CONSOLE_MAX_BYTES};
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{LogError, LogStream, Logs, Query, segments};

/// The kept copy, beside the segments of the log.
const KEPT_FILE: &str = "console.log";
/// Pause between two looks at a console that is followed: short to a reader's eye, and next to nothing for a thousand.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;

impl Logs {
    /// Keeps a copy of a console with the machine's log, at most its last [`CONSOLE_MAX_BYTES`]. A console that is gone was
    /// copied before. Blocks on the disk.
    pub fn keep_console(&self, id: MachineId, console: &Path) -> Result<(), LogError> {
        let mut from = match std::fs::File::open(console) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| LogError::io(console, error))?,
        };
        let mut bytes = Vec::new();
        let read = from.by_ref().take(2 * CONSOLE_MAX_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| LogError::io(console, error))?;
        let excess = bytes.len().saturating_sub(CONSOLE_MAX_BYTES as usize);
        let dir = self.dir.join(id.to_string());
        segments::make_dir(&dir)?;
        let (new, kept) = (dir.join("console.new"), dir.join(KEPT_FILE));
        let written = std::fs::write(&new, &bytes[excess..]).and_then(|()| std::fs::rename(&new, &kept));
        written.map_err(|error| LogError::io(&kept, error))
    }

    /// The console of a machine, from `live` while that is there, else the kept copy.
    pub fn console(&self, id: MachineId, live: Option<PathBuf>) -> Console {
        let kept = self.dir.join(id.to_string()).join(KEPT_FILE);
        Console { live, kept, open: None, seq: 0 }
    }
}

/// A console that is being read.
#[derive(Debug)]
pub struct Console {
    live: Option<PathBuf>,
    kept: PathBuf,
    open: Option<Open>,
    seq: u64,
}

/// The file that is being read. It stays readable when it is replaced or removed.
#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
}

impl Console {
    /// All that is there now, as the query asks.
    pub async fn read(mut self, query: &Query) -> LogStream {
        let mut entries = Vec::new();
        while let Some(entry) = self.next_now().await {
            entries.push(entry);
        }
        let since = query.since_unix_ms.unwrap_or(0);
        entries.retain(|entry| entry.time_unix_ms >= since);
        if let Some(lines) = query.tail_lines {
            entries = tail(&entries, lines);
        }
        futures_util::stream::iter(entries).boxed()
    }

    /// What is there now and comes later, mixed with `log`, and ending with it.
    pub async fn follow(mut self, query: &Query, log: LogStream) -> LogStream {
        let reader = Console { live: self.live.clone(), kept: self.kept.clone(), open: None, seq: 0 };
        let mut first = Vec::new();
        if query.tail_lines.is_some() || query.since_unix_ms.is_some() {
            // What is there already is skipped in the one that follows: it stands where the other ended.
            while let Some(entry) = self.next_now().await {
                first.push(entry);
            }
            first = reader.read(query).await.collect().await;
        }
        let followed = futures_util::stream::unfold((self, Some(log)), async |(mut console, mut log)| {
            loop {
                let Some(running) = &mut log else {
                    return console.next_now().await.map(|entry| (entry, (console, log)));
                };
                tokio::select! {
                    biased;
                    entry = running.next() => match entry {
                        Some(entry) => return Some((entry, (console, log))),
                        None => log = None,
                    },
                    entry = console.next() => return Some((entry, (console, log))),
                }
            }
        });
        futures_util::stream::iter(first).chain(followed).boxed()
    }

    /// The next bytes, once there are any. May be cancelled.
    async fn next(&mut self) -> LogEntry {
        loop {
            if let Some(entry) = self.next_now().await {
                return entry;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The next bytes, if there are any. What cannot be read counts as empty: a console is a help, not a promise.
    async fn next_now(&mut self) -> Option<LogEntry> {
        if self.open.is_none() {
            let live = match &self.live {
                Some(live) => Open::at(live, 0).await,
                None => None,
            };
            self.open = match live {
                Some(open) => Some(open),
                None => Open::at(&self.kept, 0).await,
            };
        }
        let open = self.open.as_mut()?;
        let modified = open.file.metadata().await.ok()?.modified().ok()?;
        // Behind the read nothing waits: bytes would be lost with a cancelled future.
        let bytes = open.read().await;
        let bytes = match bytes.is_empty() {
            true => self.replaced().await?,
            false => bytes,
        };
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.seq += 1;
        Some(LogEntry {
            seq: self.seq,
            time_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            channel: Channel::Console,
            bytes,
        })
    }

    /// At the file's end: where its writer has dropped the older part by replacing it, the bytes behind those that were read.
    async fn replaced(&mut self) -> Option<Vec<u8>> {
        let live = self.live.as_ref()?;
        let open = self.open.as_mut()?;
        if tokio::fs::metadata(live).await.ok()?.ino() == open.inode {
            return None;
        }
        // What came between the last look and the replacement.
        let mut bytes = open.read().await;
        if bytes.is_empty() {
            *open = Open::at(live, CONSOLE_KEPT_BYTES).await?;
            bytes = open.read().await;
        }
        Some(bytes).filter(|bytes| !bytes.is_empty())
    }
}

impl Open {
    async fn at(path: &Path, offset: u64) -> Option<Self> {
        let mut file = File::open(path).await.ok()?;
        file.seek(std::io::SeekFrom::Start(offset)).await.ok()?;
        let inode = file.metadata().await.ok()?.ino();
        Some(Self { file, inode })
    }

    async fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK_BYTES];
        let count = self.file.read(&mut bytes).await.unwrap_or(0);
        bytes.truncate(count);
        bytes
    }
}

/// The last `lines` lines of the entries, in one entry.
fn tail(entries: &[LogEntry], lines: u64) -> Vec<LogEntry> {
    let Some(last) = entries.last() else { return Vec::new() };
    let all: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes.iter().copied()).collect();
    let body = all.strip_suffix(b"\n").unwrap_or(&all);
    let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
    let newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = match wanted.checked_sub(1) {
        None => all.len(),
        Some(before) => newlines.map(|(at, _)| at + 1).nth(before).unwrap_or(0),
    };
    let bytes = all[start..].to_vec();
    if bytes.is_empty() { Vec::new() } else { vec![LogEntry { bytes, ..last.clone() }] }
}

#[cfg(test)]
mod tests {
    use calve_core::Timestamp;

    use super::super::LogOptions;
    use super::*;

    fn text(entries: &[LogEntry]) -> String {
        entries.iter().map(|entry| String::from_utf8_lossy(&entry.bytes).into_owned()).collect()
    }

    #[tokio::test]
    async fn a_console_is_read_from_its_file_and_later_from_the_copy() {
        let dir = std::env::temp_dir().join(format!("calve-console-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (id, live) = (MachineId::new(Timestamp(1), 7), dir.join("live"));
        let logs = Logs::open(dir.join("logs"), LogOptions::default());
        std::fs::write(&live, "one\ntwo\n").unwrap();
        let read = async |query: Query| {
            let stream = logs.console(id, Some(live.clone())).read(&query).await;
            text(&stream.collect::<Vec<_>>().await)
        };
        assert_eq!(read(Query::default()).await, "one\ntwo\n");
        logs.keep_console(id, &live).unwrap();
        std::fs::remove_file(&live).unwrap();
        logs.keep_console(id, &live).expect("a repeated copy of what is gone changes nothing");
        assert_eq!(read(Query::default()).await, "one\ntwo\n");
        assert_eq!(read(Query { tail_lines: Some(1), ..Query::default() }).await, "two\n");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_follower_loses_nothing_where_the_older_part_is_dropped() {
        let dir = std::env::temp_dir().join(format!("calve-console-dropped-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let live = dir.join("live");
        let logs = Logs::open(dir.join("logs"), LogOptions::default());
        let old = vec![b'x'; CONSOLE_KEPT_BYTES as usize + 10];
        std::fs::write(&live, &old).unwrap();
        let mut console = logs.console(MachineId::new(Timestamp(1), 7), Some(live.clone()));
        let mut bytes = 0;
        while let Some(entry) = console.next_now().await {
            bytes += entry.bytes.len();
        }
        assert_eq!(bytes, old.len());
        let kept = &old[old.len() - CONSOLE_KEPT_BYTES as usize..];
        std::fs::write(dir.join("new"), [kept, b"more"].concat()).unwrap();
        std::fs::rename(dir.join("new"), &live).unwrap();
        assert_eq!(text(&[console.next_now().await.expect("more came")]), "more");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
