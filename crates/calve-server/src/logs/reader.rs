//! Reading a log: replay from the files, then live, at the reader's own pace.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use calve_wire::frame::{FRAME_MAX_BYTES, Frame, LogEntry};
use futures_util::StreamExt;
use tokio::sync::watch;

use super::segments::Segment;
use super::{LogStream, MachineLog, Query, Tip, blocking, lock};

/// Read at once: bounds what a slow reader holds.
const CHUNK_BYTES: usize = 128 * 1024;

/// One reader's position.
pub(super) struct Reader {
    log: Arc<MachineLog>,
    tip: watch::Receiver<Tip>,
    query: Query,
    live: bool,
    place: Place,
    ready: VecDeque<LogEntry>,
    /// The tail of a query is looked up with the first step.
    begun: bool,
    /// Where a reader that does not go live ends.
    until_seq: u64,
}

/// Where in the files.
struct Place {
    next_seq: u64,
    /// Lines at the front of entry `next_seq` that were not asked for.
    skip_lines: usize,
    open: Option<Open>,
}

/// The file that is being read. It stays readable when rotation removes it.
struct Open {
    file: File,
    segment: Segment,
    offset: u64,
}

impl Reader {
    pub(super) fn new(log: Arc<MachineLog>, query: Query, live: bool) -> Self {
        let tip = log.tip.subscribe();
        let place = Place { next_seq: query.from_seq.max(1), skip_lines: 0, open: None };
        Self { log, tip, query, live, place, ready: VecDeque::new(), begun: false, until_seq: u64::MAX }
    }

    pub(super) fn into_stream(self) -> LogStream {
        futures_util::stream::unfold(self, |mut reader| async move {
            reader.next().await.map(|entry| (entry, reader))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<LogEntry> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(entry);
            }
            // Looked at before the files are: what is added in between is seen with the next change.
            let tip = *self.tip.borrow_and_update();
            if !self.begun {
                self.begun = true;
                self.until_seq = if self.live { u64::MAX } else { tip.last_seq };
                self.find_tail(tip.last_seq).await;
            }
            if tip.removed || self.place.next_seq > self.until_seq {
                return None;
            }
            if self.place.next_seq <= tip.last_seq {
                self.fill().await;
            } else if !self.live || tip.complete {
                return None;
            } else {
                // The sender lives in the log that this reader holds.
                self.tip.changed().await.ok()?;
            }
        }
    }

    /// Reads a chunk of entries into `ready`.
    async fn fill(&mut self) {
        let log = self.log.clone();
        let mut place = std::mem::replace(&mut self.place, Place { next_seq: 0, skip_lines: 0, open: None });
        let (place, entries) = blocking(&self.log.disk, move || {
            let entries = place.read(&log);
            (place, entries)
        })
        .await;
        self.place = place;
        let until = self.until_seq;
        self.ready.extend(entries.into_iter().filter(|entry| entry.seq <= until && self.query.takes(entry)));
    }

    async fn find_tail(&mut self, last_seq: u64) {
        let Some(lines) = self.query.tail_lines else { return };
        let (log, query) = (self.log.clone(), self.query.clone());
        let from = self.place.next_seq;
        let found = blocking(&self.log.disk, move || find_tail(&log, &query, lines, last_seq)).await;
        self.place.next_seq = found.0.max(from);
        self.place.skip_lines = found.1;
    }
}

impl Place {
    /// The next entries, about [`CHUNK_BYTES`] of them. None only where `next_seq` moved on, or everything was removed.
    fn read(&mut self, log: &MachineLog) -> Vec<LogEntry> {
        let Some((grows, limit)) = self.open_segment(log) else {
            // Everything up to the tip is gone.
            self.next_seq = self.next_seq.max(log.tip.borrow().last_seq + 1);
            return Vec::new();
        };
        let open = self.open.as_mut().expect("just opened");
        let (entries, bytes) = read_entries(open, limit);
        open.offset += bytes;
        if bytes == 0 {
            if grows {
                // Unreadable up to the tip: skip it, the numbers show the jump.
                tracing::warn!(log = %log.dir.display(), "a part of a log is not readable");
                self.next_seq = log.tip.borrow().last_seq + 1;
                self.open = None;
            } else {
                let first_seq = open.segment.first_seq;
                self.leave(log, first_seq);
            }
        }
        let from = self.next_seq;
        let mut entries: Vec<_> = entries.into_iter().filter(|entry| entry.seq >= from).collect();
        if let Some(last) = entries.last() {
            self.next_seq = last.seq + 1;
        }
        if let Some(first) = entries.first_mut()
            && self.skip_lines > 0
        {
            if first.seq == from {
                first.bytes.drain(..after_line(&first.bytes, self.skip_lines));
            }
            self.skip_lines = 0;
            entries.retain(|entry| !entry.bytes.is_empty());
        }
        entries
    }

    /// Goes on to the file behind the one that began with `first_seq`.
    fn leave(&mut self, log: &MachineLog, first_seq: u64) {
        self.open = None;
        let next = lock(&log.segments).after(first_seq);
        self.next_seq = match next {
            Some((segment, _)) => self.next_seq.max(segment.first_seq),
            None => log.tip.borrow().last_seq + 1,
        };
    }

    /// Opens the file with the next entry where it is not open: whether it still grows, and its bytes.
    fn open_segment(&mut self, log: &MachineLog) -> Option<(bool, u64)> {
        loop {
            let (segment, grows) = {
                let segments = lock(&log.segments);
                match &self.open {
                    Some(open) => match segments.holding(open.segment.first_seq) {
                        Some((segment, grows)) if segment.first_seq == open.segment.first_seq => {
                            (segment, grows)
                        }
                        // Rotation has removed it; it is read to its end all the same.
                        _ => return Some((false, open.file.metadata().map_or(0, |meta| meta.len()))),
                    },
                    None => segments.holding(self.next_seq)?,
                }
            };
            if self.open.is_some() {
                return Some((grows, segment.len));
            }
            match File::open(segment.path(&log.dir)) {
                Ok(file) => self.open = Some(Open { file, segment, offset: 0 }),
                Err(error) => {
                    let still_listed = lock(&log.segments)
                        .holding(segment.first_seq)
                        .is_some_and(|(there, _)| there.first_seq == segment.first_seq);
                    if still_listed {
                        tracing::warn!(log = %log.dir.display(), %error, "a part of a log is not readable");
                        self.leave(log, segment.first_seq);
                        if grows {
                            return None;
                        }
                    }
                }
            }
        }
    }
}

/// Whole entries from `open`'s offset on, and their bytes. No bytes: nothing more can be read before `limit`.
fn read_entries(open: &Open, limit: u64) -> (Vec<LogEntry>, u64) {
    let mut want = CHUNK_BYTES;
    loop {
        let left = usize::try_from(limit.saturating_sub(open.offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; want.min(left)];
        let got = read_full(&open.file, &mut buffer, open.offset);
        let (entries, bytes) = decode(&buffer[..got]);
        if bytes > 0 || got < want || want > FRAME_MAX_BYTES {
            return (entries, bytes);
        }
        // One entry is longer than the buffer.
        want = 4 + FRAME_MAX_BYTES;
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "a log is not readable");
                break;
            }
        }
    }
    got
}

fn decode(mut bytes: &[u8]) -> (Vec<LogEntry>, u64) {
    let (mut entries, mut used) = (Vec::new(), 0);
    while let Ok(Some((frame, length))) = Frame::decode(bytes) {
        bytes = &bytes[length..];
        used += length as u64;
        if let Frame::Log(entry) = frame {
            entries.push(entry);
        }
    }
    (entries, used)
}

/// The entry in which the last `lines` lines of what `query` takes begin, and how many of its lines come before them.
fn find_tail(log: &MachineLog, query: &Query, lines: u64, last_seq: u64) -> (u64, usize) {
    if lines == 0 {
        return (last_seq + 1, 0);
    }
    let mut first_seq = 0;
    let mut wanted = None;
    for segment in lock(&log.segments).newest_first() {
        let Ok(file) = File::open(segment.path(&log.dir)) else { break };
        let mut ends = line_ends(&mut Open { file, segment, offset: 0 }, query, last_seq);
        while let Some((seq, ended, newlines)) = ends.pop() {
            // The last line counts whether it is ended or not.
            let left = wanted.get_or_insert(lines + u64::from(ended));
            if *left <= newlines {
                return (seq, usize::try_from(newlines - *left + 1).unwrap_or(usize::MAX));
            }
            *left -= newlines;
            first_seq = seq;
        }
    }
    (first_seq, 0)
}

/// Of each entry of a file that `query` takes: its number, whether it ends with a newline, and its newlines.
fn line_ends(open: &mut Open, query: &Query, last_seq: u64) -> Vec<(u64, bool, u64)> {
    let mut ends = Vec::new();
    loop {
        let (entries, bytes) = read_entries(open, open.segment.len);
        if bytes == 0 {
            return ends;
        }
        open.offset += bytes;
        for entry in entries.iter().filter(|entry| query.takes(entry) && entry.seq <= last_seq) {
            let newlines = entry.bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            ends.push((entry.seq, entry.bytes.last() == Some(&b'\n'), newlines));
        }
    }
}

/// Where the text behind the `lines`-th newline begins.
fn after_line(bytes: &[u8], lines: usize) -> usize {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(bytes.len())
}
