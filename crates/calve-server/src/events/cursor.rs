//! Reading the event log from a position on, across segments, without holding up its writer.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use calve_wire::event::Event;
use tokio::sync::watch;

use super::{EventLog, segment_path};

/// Most bytes that one batch reads: bounds the memory of a reader who begins far back.
const BATCH_BYTES: usize = 256 * 1024;

/// A position in the event log.
pub struct Cursor {
    log: EventLog,
    last: watch::Receiver<u64>,
    /// The last event that was given.
    seen: u64,
    /// The open segment's first event and file, and where its next line begins.
    at: Option<(u64, File, u64)>,
    /// The event that the next line of the segment holds.
    next_line: u64,
}

impl Cursor {
    pub(super) fn new(log: EventLog, seen: u64) -> Self {
        let last = log.shared.last.subscribe();
        Self { log, last, seen, at: None, next_line: 0 }
    }

    /// Reads on from event `seq`, whose line begins at `offset` of `file`, the segment that begins with event `first`.
    pub(super) fn at(log: EventLog, first: u64, file: File, offset: u64, seq: u64) -> Self {
        Self { at: Some((first, file, offset)), next_line: seq, ..Self::new(log, seq - 1) }
    }

    /// The same without the events up to this number.
    #[must_use]
    pub fn behind(mut self, seen: u64) -> Self {
        self.seen = self.seen.max(seen);
        self
    }

    /// Some of the next events that are kept, in order; none where all were given.
    pub fn kept(&mut self) -> io::Result<Vec<Event>> {
        let lines = self.kept_lines()?;
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
    }

    /// The same as they were written, one JSON document a line; empty where all were given.
    pub fn kept_lines(&mut self) -> io::Result<Vec<u8>> {
        while self.seen < *self.last.borrow_and_update() {
            let Some(first) = self.segment_of_next() else { break };
            let lines = self.read_batch(first)?;
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
        Ok(Vec::new())
    }

    /// The next events; waits for at least one.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let events = self.kept()?;
            if !events.is_empty() {
                return Ok(events);
            }
            let seen = self.seen;
            if self.last.wait_for(|last| *last > seen).await.is_err() {
                unreachable!("this cursor holds the log and with it the sender");
            }
        }
    }

    /// The first event of the segment in which to read on; dropped events are passed over.
    fn segment_of_next(&mut self) -> Option<u64> {
        let writer = self.log.shared.writer();
        let next = self.seen + 1;
        let first =
            *writer.segments.iter().rev().find(|first| **first <= next).or(writer.segments.first())?;
        Some(first)
    }

    /// The next lines of a segment, without those that were seen.
    fn read_batch(&mut self, first: u64) -> io::Result<Vec<u8>> {
        if self.at.as_ref().is_none_or(|(open, ..)| *open != first) {
            match File::open(segment_path(&self.log.shared.dir, first)) {
                Ok(file) => self.at = Some((first, file, 0)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.pass_over(first);
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error),
            }
            self.next_line = first;
        }
        let (_, file, offset) = self.at.as_mut().expect("opened above");
        let mut lines = read_lines(file, *offset)?;
        if lines.is_empty() {
            self.pass_over(first);
            return Ok(lines);
        }
        *offset += lines.len() as u64;
        let mut seen_bytes = 0;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.next_line <= self.seen {
                seen_bytes += line.len();
            } else {
                self.seen = self.next_line;
            }
            self.next_line += 1;
        }
        lines.drain(..seen_bytes);
        Ok(lines)
    }

    /// Goes on behind a segment that was dropped while this cursor was in it, or that somebody cut short.
    fn pass_over(&mut self, first: u64) {
        let writer = self.log.shared.writer();
        let following = writer.segments.iter().find(|following| **following > first);
        self.seen = self.seen.max(following.map_or(writer.last, |following| following - 1));
    }
}

/// The whole lines from `offset` on, at least one unless the file ends there.
fn read_lines(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for size in (1..).map(|times| times * BATCH_BYTES as u64) {
        file.seek(SeekFrom::Start(offset + bytes.len() as u64))?;
        let wanted = size - bytes.len() as u64;
        let read = file.by_ref().take(wanted).read_to_end(&mut bytes)?;
        if let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') {
            bytes.truncate(end + 1);
            break;
        }
        if (read as u64) < wanted {
            bytes.clear();
            break;
        }
    }
    Ok(bytes)
}
