//! The files of one machine's log: appending, rotation, and what a cut-off server left.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use calve_wire::frame::{FRAME_MAX_BYTES, Frame, LogEntry};

use super::{LogError, LogOptions};

/// Bytes of a log frame before the entry's own: length, kind, number, time, channel.
const HEAD_BYTES: usize = 4 + 1 + 8 + 8 + 1;
/// Read at once while an opened log is scanned.
const SCAN_BUFFER_BYTES: usize = 64 * 1024;

/// Which files there are and how far each was written.
#[derive(Debug, Default)]
pub(super) struct Segments {
    /// Oldest first; the last one grows.
    list: VecDeque<Segment>,
    last_seq: u64,
    /// The next entry begins a file, as numbers are without gaps within each.
    jumps: bool,
}

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Number of its first entry; its name.
    pub(super) first_seq: u64,
    /// Bytes of whole frames in it; what lies behind is left over from a failed write.
    pub(super) len: u64,
}

impl Segment {
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.log", self.first_seq))
    }
}

impl Segments {
    /// Finds what is there, scans the last file and cuts a torn frame off its end.
    pub(super) fn load(dir: &Path) -> Result<Self, LogError> {
        let mut list = list(dir).map_err(|error| LogError::io(dir, error))?;
        let mut last_seq = 0;
        if let Some(last) = list.back_mut() {
            let path = last.path(dir);
            let (seq, len) = scan(&path, last.first_seq).map_err(|error| LogError::io(&path, error))?;
            if len < last.len {
                tracing::warn!(file = %path.display(), "cutting off {} torn bytes", last.len - len);
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(len))
                    .map_err(|error| LogError::io(&path, error))?;
            }
            (last_seq, last.len) = (seq, len);
        }
        Ok(Self { list, last_seq, jumps: false })
    }

    /// The number of the last entry; 0 before the first.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Bytes of all files.
    pub(super) fn size_bytes(&self) -> u64 {
        self.list.iter().map(|segment| segment.len).sum()
    }

    /// The file in which entry `seq` is, or the next one after it that is there, and whether it still grows.
    pub(super) fn holding(&self, seq: u64) -> Option<(Segment, bool)> {
        let behind = self.list.partition_point(|segment| segment.first_seq <= seq);
        self.at(behind.saturating_sub(1))
    }

    /// The file that begins behind entry `first_seq`.
    pub(super) fn after(&self, first_seq: u64) -> Option<(Segment, bool)> {
        self.at(self.list.partition_point(|segment| segment.first_seq <= first_seq))
    }

    fn at(&self, index: usize) -> Option<(Segment, bool)> {
        self.list.get(index).map(|segment| (*segment, index + 1 == self.list.len()))
    }

    /// Every file, newest first.
    pub(super) fn newest_first(&self) -> Vec<Segment> {
        self.list.iter().rev().copied().collect()
    }

    /// Writes entries behind the last; ones that are there already are skipped.
    pub(super) fn append(
        &mut self,
        dir: &Path,
        options: &LogOptions,
        entries: &[LogEntry],
    ) -> Result<(), LogError> {
        let mut buffer = Vec::new();
        let mut buffered_seq = self.last_seq;
        for entry in entries {
            if entry.seq <= buffered_seq {
                continue;
            }
            if entry.seq != buffered_seq + 1 {
                self.write(dir, options, &buffer, buffered_seq)?;
                return Err(LogError::Gap { expected: buffered_seq + 1, found: entry.seq });
            }
            let more = (HEAD_BYTES + entry.bytes.len()) as u64;
            if !buffer.is_empty() && self.open_len() + buffer.len() as u64 + more > options.segment_bytes {
                self.write(dir, options, &buffer, buffered_seq)?;
                buffer.clear();
            }
            Frame::Log(entry.clone()).encode(&mut buffer);
            buffered_seq = entry.seq;
        }
        self.write(dir, options, &buffer, buffered_seq)
    }

    /// Goes on with entry `next_seq`; backwards nothing is skipped.
    pub(super) fn skip_to(&mut self, next_seq: u64) {
        if next_seq > self.last_seq + 1 {
            self.last_seq = next_seq - 1;
            self.jumps = true;
        }
    }

    fn open_len(&self) -> u64 {
        self.list.back().map_or(0, |segment| segment.len)
    }

    /// Writes whole frames, the last of which is entry `seq`, to the last segment or a new one.
    fn write(&mut self, dir: &Path, options: &LogOptions, buffer: &[u8], seq: u64) -> Result<(), LogError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let full = self.open_len() > 0 && self.open_len() + buffer.len() as u64 > options.segment_bytes;
        let mut file = None;
        if !full
            && !self.jumps
            && let Some(segment) = self.list.back()
        {
            let path = segment.path(dir);
            match OpenOptions::new().write(true).open(&path) {
                Ok(opened) => file = Some(opened),
                // Somebody removed it: there is nothing to save, but what comes can be kept.
                Err(error) if error.kind() == ErrorKind::NotFound => self.list.clear(),
                Err(error) => return Err(LogError::io(&path, error)),
            }
        }
        let file = match file {
            Some(file) => file,
            None => self.begin(dir, options, buffer.len() as u64)?,
        };
        let segment = self.list.back_mut().expect("an open segment");
        if let Err(error) = file.write_all_at(buffer, segment.len) {
            // Readers do not look behind `len`, and the next write begins there; cutting merely frees the space.
            let _ = file.set_len(segment.len);
            return Err(LogError::io(&segment.path(dir), error));
        }
        segment.len += buffer.len() as u64;
        self.last_seq = seq;
        Ok(())
    }

    /// Begins a new segment and drops old ones until `coming` bytes fit under the cap.
    fn begin(&mut self, dir: &Path, options: &LogOptions, coming: u64) -> Result<File, LogError> {
        let segment = Segment { first_seq: self.last_seq + 1, len: 0 };
        let path = segment.path(dir);
        make_dir(dir)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| LogError::io(&path, error))?;
        let room = options.cap_bytes.saturating_sub(options.segment_bytes.max(coming));
        while self.size_bytes() > room
            && let Some(oldest) = self.list.pop_front()
        {
            let path = oldest.path(dir);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "cannot drop an old part of a log");
            }
        }
        self.list.push_back(segment);
        self.jumps = false;
        Ok(file)
    }
}

/// Makes a machine's directory, for its owner alone.
pub(super) fn make_dir(dir: &Path) -> Result<(), LogError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(|error| LogError::io(dir, error))
}

fn list(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(VecDeque::new()),
        entries => entries?,
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = entry?;
        let first_seq = entry.file_name().to_str().and_then(|name| name.strip_suffix(".log")?.parse().ok());
        if let Some(first_seq) = first_seq {
            list.push(Segment { first_seq, len: entry.metadata()?.len() });
        }
    }
    list.sort_by_key(|segment| segment.first_seq);
    Ok(list.into())
}

/// Walks over the frames of a file: the last whole entry's number, and the bytes up to its end.
fn scan(path: &Path, first_seq: u64) -> io::Result<(u64, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(SCAN_BUFFER_BYTES, file);
    let (mut next_seq, mut len) = (first_seq, 0);
    let mut head = [0; HEAD_BYTES];
    while len + HEAD_BYTES as u64 <= size {
        reader.read_exact(&mut head)?;
        let body = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let seq = u64::from_be_bytes(head[5..13].try_into().expect("eight bytes"));
        let end = len + 4 + body as u64;
        if !(HEAD_BYTES - 4..=FRAME_MAX_BYTES).contains(&body)
            || head[4] != 1
            || seq != next_seq
            || end > size
        {
            break;
        }
        reader.seek_relative((4 + body - HEAD_BYTES) as i64)?;
        (next_seq, len) = (next_seq + 1, end);
    }
    Ok((next_seq - 1, len))
}
