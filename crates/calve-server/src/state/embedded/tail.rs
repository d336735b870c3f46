//! The tail: changes that are not in the database yet, one after the other in a file that is written but not synced.
//!
//! ```text
//!  length: u32 BE (of what follows the checksum) │ checksum: u64 BE │ revision: u64 BE │ kind: u8 │ key length: u16 BE │ key │ value
//! ```
//! A process that is killed leaves every written record in the page cache; a power failure may tear the end off, which
//! the checksum tells.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

use super::{Change, Revision};

/// Space that the tail has on the disk before it needs it: stops, ends and removals are written also where the disk is
/// full, some two thousand of them. A file system that cannot set space aside gives none, and nothing else changes.
const RESERVED_BYTES: u64 = 1024 * 1024;

const HEAD_BYTES: usize = 12;
const BODY_HEAD_BYTES: usize = 11;
const KIND_PUT: u8 = 0;
const KIND_DELETE: u8 = 1;

pub(super) struct Tail {
    path: PathBuf,
    file: File,
    length: u64,
    /// Set where a torn record could not be cut off: nothing may be written behind it.
    broken: bool,
}

impl Tail {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length, broken: false })
    }

    /// The changes above `revision`, up to the first record that is torn or out of order. From there on it is cut off, and
    /// kept beside the tail: it may be more than the record that a power failure tore.
    pub(super) fn read_after(&mut self, mut revision: Revision) -> io::Result<Vec<Change>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        let mut changes = Vec::new();
        let mut at = 0;
        while let Some((change, length)) = decode(&bytes[at..]) {
            if change.revision == revision + 1 {
                revision = change.revision;
                changes.push(change);
            } else if change.revision > revision {
                break;
            }
            at += length;
        }
        if at < bytes.len() {
            self.keep_aside(&bytes[at..]);
        }
        self.cut(at as u64)?;
        Ok(changes)
    }

    fn keep_aside(&self, rest: &[u8]) {
        let aside = self.path.with_extension("tail.cut");
        let (tail, bytes, to) = (self.path.display(), rest.len(), aside.display());
        match std::fs::write(&aside, rest) {
            Ok(()) => tracing::warn!("the last {bytes} bytes of {tail} are torn or damaged; kept in {to}"),
            Err(error) => {
                tracing::warn!("the last {bytes} bytes of {tail} are torn or damaged, and lost: {error}")
            }
        }
    }

    /// Writes the changes behind the others; on an error none of them is there.
    pub(super) fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the state's tail file could not be repaired"));
        }
        let mut bytes = Vec::new();
        for change in changes {
            encode(change, &mut bytes);
        }
        let start = self.length;
        self.file.seek(SeekFrom::Start(start))?;
        if let Err(error) = self.file.write_all(&bytes) {
            self.broken = self.cut(start).is_err();
            return Err(error);
        }
        self.length = start + bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything: the database has it.
    pub(super) fn clear(&mut self) {
        // Records that stay behind are at or below the database's revision and are skipped when read.
        if self.length > 0 && self.cut(0).is_ok() {
            self.broken = false;
        }
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.length
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.length = length;
        // That gave back what was set aside behind the end (fallocate(2)).
        let _ = rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, RESERVED_BYTES);
        Ok(())
    }
}

fn encode(change: &Change, out: &mut Vec<u8>) {
    let value: &[u8] = change.value.as_deref().unwrap_or_default();
    let key_length = u16::try_from(change.key.len()).expect("keys are checked to be short");
    let mut body = Vec::with_capacity(BODY_HEAD_BYTES + change.key.len() + value.len());
    body.extend_from_slice(&change.revision.to_be_bytes());
    body.push(if change.value.is_some() { KIND_PUT } else { KIND_DELETE });
    body.extend_from_slice(&key_length.to_be_bytes());
    body.extend_from_slice(change.key.as_bytes());
    body.extend_from_slice(value);
    out.extend_from_slice(&u32::try_from(body.len()).expect("values are checked to be small").to_be_bytes());
    out.extend_from_slice(&checksum(&body).to_be_bytes());
    out.extend_from_slice(&body);
}

fn decode(bytes: &[u8]) -> Option<(Change, usize)> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u64::from_be_bytes(bytes.get(4..HEAD_BYTES)?.try_into().ok()?);
    let body = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?)?;
    if length < BODY_HEAD_BYTES || checksum(body) != sum {
        return None;
    }
    let revision = u64::from_be_bytes(body[..8].try_into().ok()?);
    let key_length = usize::from(u16::from_be_bytes([body[9], body[10]]));
    let key = body.get(BODY_HEAD_BYTES..BODY_HEAD_BYTES + key_length)?;
    let value = &body[BODY_HEAD_BYTES + key_length..];
    let value = match body[8] {
        KIND_PUT => Some(Bytes::copy_from_slice(value)),
        KIND_DELETE => None,
        _ => return None,
    };
    Some((Change { revision, key: String::from_utf8(key.to_vec()).ok()?, value }, HEAD_BYTES + length))
}

/// FNV-1a, 64 bits: tells a torn record, and is not meant to resist anybody.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: Revision) -> Change {
        let value = (!revision.is_multiple_of(3)).then(|| Bytes::from(vec![revision as u8; 5]));
        Change { revision, key: format!("k/{revision}"), value }
    }

    #[test]
    fn a_torn_end_is_cut_off_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tail");
        let written: Vec<_> = (1..=6).map(change).collect();
        Tail::open(&path).unwrap().append(&written).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(whole - 1).unwrap();

        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.read_after(0).unwrap(), written[..5]);
        assert_eq!(tail.read_after(3).unwrap(), written[3..5]);
        tail.append(&[change(6)]).unwrap();
        assert_eq!(Tail::open(&path).unwrap().read_after(4).unwrap(), written[4..]);
    }

    #[test]
    fn a_gap_in_the_revisions_ends_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let mut tail = Tail::open(&dir.path().join("tail")).unwrap();
        tail.append(&[change(1), change(2), change(4)]).unwrap();
        assert_eq!(tail.read_after(0).unwrap(), [change(1), change(2)]);
        // What was cut off is not lost.
        let mut aside = Tail::open(&dir.path().join("tail.tail.cut")).unwrap();
        assert_eq!(aside.read_after(3).unwrap(), [change(4)]);
    }
}
