//! The event log: what happened to machines, in order, kept up to a bound; also the audit of every request that changes
//! something.
//!
//! ```text
//!  <dir>/00000000000000000001.jsonl   a segment, named by its first event; one JSON document a line
//!  <dir>/00000000000000005001.jsonl   …
//! ```
//! An event is written before it is shown to anybody, so a killed process loses none that was seen.

mod cursor;
mod search;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use calve_core::{MachineId, MachineName, Timestamp};
use calve_wire::event::{Event, What};
use tokio::sync::watch;

pub use cursor::Cursor;

/// Events in one segment: a megabyte or so, the unit in which old ones are dropped.
const SEGMENT_EVENTS: u64 = 5_000;
/// Segments that are kept: with [`SEGMENT_EVENTS`] the last 95,000 to 100,000 events, 25 MB or so, which is ten thousand
/// machines from declared to gone.
const SEGMENTS_MAX: usize = 20;
/// Two events whose times are further apart than this are in the order of their times: each takes its time before it waits
/// for its turn to be written.
const DISORDER_MS: u64 = 1000;

/// The events of one server. Cloning gives another handle.
#[derive(Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    writer: Mutex<Writer>,
    /// The last event that was written.
    last: watch::Sender<u64>,
}

struct Writer {
    file: File,
    /// First events of the kept segments, in order; the file is the last one's.
    segments: Vec<u64>,
    last: u64,
    /// Length of the file in bytes up to the last whole event.
    length: u64,
}

impl EventLog {
    /// Opens or creates the log in `dir`; a line that a crash tore off is dropped.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut segments = segments(dir)?;
        if segments.is_empty() {
            segments.push(1);
        }
        let first = *segments.last().expect("at least one");
        let path = segment_path(dir, first);
        let (whole, events) = match std::fs::read(&path) {
            Ok(bytes) => whole_lines(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(error) => return Err(error),
        };
        let file = open_segment(&path)?;
        file.set_len(whole)?;
        let last = first - 1 + events;
        let writer = Mutex::new(Writer { file, segments, last, length: whole });
        Ok(Self { shared: Arc::new(Shared { dir: dir.to_owned(), writer, last: watch::Sender::new(last) }) })
    }

    /// Writes an event now; `by` is `loop` or a principal. Where it cannot be written (a full disk) it is told in the
    /// server's log instead, because what it tells of has happened all the same.
    pub fn append(&self, by: &str, machine: MachineId, name: &MachineName, what: What) {
        let time_unix_ms = now().0;
        let mut writer = self.shared.writer();
        let event = Event {
            seq: writer.last + 1,
            time_unix_ms,
            by: by.to_owned(),
            machine,
            name: name.clone(),
            what,
        };
        match writer.append(&self.shared.dir, &event) {
            Ok(()) => drop(self.shared.last.send_replace(event.seq)),
            Err(error) => tracing::error!(?event, %error, "an event could not be written"),
        }
    }

    /// Reads the kept events after `since`, and waits for further ones.
    pub fn after(&self, since: u64) -> Cursor {
        Cursor::new(self.clone(), since)
    }

    /// The same for the events that happened then or later, and maybe some that happened a little earlier: the segment and
    /// the place in it are searched for by the times of some events, as they are in order.
    pub fn since_time(&self, unix_ms: u64) -> io::Result<Cursor> {
        let unix_ms = unix_ms.saturating_sub(DISORDER_MS);
        let segments = self.shared.writer().segments.clone();
        for first in segments.into_iter().rev() {
            let path = segment_path(&self.shared.dir, first);
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let Some((offset, seq)) = search::last_before(&file, unix_ms)? {
                return Ok(Cursor::at(self.clone(), first, file, offset, seq));
            }
        }
        Ok(self.after(0))
    }

    /// The last event's number; 0 where there is none.
    pub fn last(&self) -> u64 {
        *self.shared.last.borrow()
    }
}

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no holder of the event log's lock panics")
    }
}

impl Writer {
    fn append(&mut self, dir: &Path, event: &Event) -> io::Result<()> {
        let first = *self.segments.last().expect("at least one");
        if event.seq >= first + SEGMENT_EVENTS {
            self.rotate(dir, event.seq)?;
        }
        let mut line = serde_json::to_vec(event).expect("an event holds nothing that JSON cannot say");
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        self.last = event.seq;
        Ok(())
    }

    fn rotate(&mut self, dir: &Path, first: u64) -> io::Result<()> {
        self.file = open_segment(&segment_path(dir, first))?;
        self.length = 0;
        self.segments.push(first);
        while self.segments.len() > SEGMENTS_MAX {
            let oldest = self.segments.remove(0);
            std::fs::remove_file(segment_path(dir, oldest))?;
        }
        Ok(())
    }
}

/// When the event on this line happened; none where it does not say.
pub fn time_of(line: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Time {
        time_unix_ms: u64,
    }
    serde_json::from_slice(line).ok().map(|Time { time_unix_ms }| time_unix_ms)
}

fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.jsonl"))
}

fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let first: Option<u64> = name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
        firsts.extend(first.filter(|first| *first > 0));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Bytes and number of the lines that are whole.
fn whole_lines(bytes: &[u8]) -> (u64, u64) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    (end as u64, bytes[..end].iter().filter(|byte| **byte == b'\n').count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> (MachineId, MachineName) {
        (MachineId::new(Timestamp(1), 2), "run-1".parse().unwrap())
    }

    fn seqs(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn events_are_numbered_on_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let (id, name) = machine();
        let log = EventLog::open(dir.path()).unwrap();
        log.append("loop", id, &name, What::Declared);
        log.append("uid:7", id, &name, What::Removed);
        drop(log);
        let path = segment_path(dir.path(), 1);
        File::options().append(true).open(&path).unwrap().write_all(b"{\"seq\":3,").unwrap();

        let log = EventLog::open(dir.path()).unwrap();
        log.append("loop", id, &name, What::Stopped);
        let mut cursor = log.after(1);
        let events = cursor.kept().unwrap();
        assert_eq!(seqs(&events), [2, 3]);
        assert_eq!((events[0].by.as_str(), &events[1].what), ("uid:7", &What::Stopped));
    }

    #[test]
    fn only_the_last_segments_are_kept_and_cursors_go_on_across_them() {
        let dir = tempfile::tempdir().unwrap();
        let (id, name) = machine();
        let log = EventLog::open(dir.path()).unwrap();
        let mut early = log.after(0);
        let total = SEGMENT_EVENTS * (SEGMENTS_MAX as u64 + 1) + 3;
        for _ in 0..total {
            log.append("loop", id, &name, What::Declared);
        }
        let first = SEGMENT_EVENTS * 2 + 1;
        let mut seen = Vec::new();
        loop {
            let batch = early.kept().unwrap();
            if batch.is_empty() {
                break;
            }
            seen.extend(seqs(&batch));
        }
        assert_eq!(seen, (first..=total).collect::<Vec<_>>());
        assert_eq!(EventLog::open(dir.path()).unwrap().last(), total);
    }

    #[test]
    fn events_of_a_time_are_found_in_their_segment() {
        let dir = tempfile::tempdir().unwrap();
        let (id, name) = machine();
        let log = EventLog::open(dir.path()).unwrap();
        for _ in 0..SEGMENT_EVENTS * 2 + 1 {
            log.append("loop", id, &name, What::Declared);
        }
        let first = |unix_ms| log.since_time(unix_ms).unwrap().kept().unwrap()[0].seq;
        assert_eq!(first(0), 1);
        assert_eq!(first(u64::MAX), SEGMENT_EVENTS * 2 + 1);
        let lines = log.after(SEGMENT_EVENTS * 2).kept_lines().unwrap();
        assert!(time_of(&lines).is_some() && time_of(b"{}").is_none());
    }

    #[test]
    fn within_a_segment_nothing_much_older_than_asked_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (id, name) = machine();
        let log = EventLog::open(dir.path()).unwrap();
        log.append("loop", id, &name, What::Declared);
        let line = std::fs::read_to_string(segment_path(dir.path(), 1)).unwrap();
        let now: u64 = time_of(line.as_bytes()).unwrap();
        let total = 4_000;
        let lines = (1..=total).map(|seq| {
            let line = line.replace("\"seq\":1,", &format!("\"seq\":{seq},"));
            line.replace(&now.to_string(), &(seq * 10_000).to_string())
        });
        drop(log);
        std::fs::write(segment_path(dir.path(), 1), lines.collect::<String>()).unwrap();
        let log = EventLog::open(dir.path()).unwrap();
        for since in [1, 2, 17, 1_999, 2_000, 3_999, 4_000] {
            let events = log.since_time(since * 10_000).unwrap().kept().unwrap();
            let begin = events[0].seq;
            assert!(begin <= since, "the event of that very time is read: {since}, {begin}");
            assert!(begin + 100 > since, "few older ones are: {since}, {begin}");
            assert_eq!(seqs(&events[..1]), [begin]);
            assert_eq!(
                events[0].time_unix_ms,
                begin * 10_000,
                "lines are numbered as they number themselves"
            );
            let behind = log.since_time(since * 10_000).unwrap().behind(total - 1).kept().unwrap();
            assert_eq!(seqs(&behind), [total]);
        }
    }

    #[tokio::test]
    async fn a_cursor_waits_for_the_next_event() {
        let dir = tempfile::tempdir().unwrap();
        let (id, name) = machine();
        let log = EventLog::open(dir.path()).unwrap();
        let mut cursor = log.after(0);
        let waiting = tokio::spawn(async move { cursor.next().await });
        log.append("loop", id, &name, What::Declared);
        assert_eq!(seqs(&waiting.await.unwrap().unwrap()), [1]);
    }
}
