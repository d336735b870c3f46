//! The record on disk. It is written in place, into blocks that were taken beforehand, so that a full disk holds up no way
//! back; of its two halves the newer whole one counts, so that an end in the middle of a write loses one step at most.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::Context;
use rustix::fs::FlockOperation;

use crate::host::{Host, remove, sync_dir};
use crate::record::Record;

/// Bytes of one half: a record has a few KiB, of which health check and notes are bounded.
const HALF_BYTES: usize = 32 * 1024;
/// Bytes that are kept free for the way back: the former system's activation writes files, too.
const BALLAST_BYTES: usize = 2 * 1024 * 1024;
/// First word of a half; the number is the form's version.
const MAGIC: &str = "calve-switch-1";
/// Past switches are kept up to this size, and then the newer half of them.
const HISTORY_MAX_BYTES: u64 = 512 * 1024;

/// The record's file, held by one process at a time.
pub struct Disk {
    file: File,
    sequence: u64,
    /// Held until the last process that has it ends.
    _lock: File,
}

/// Why the record is not ours.
pub enum Held {
    /// Another process has it.
    Locked,
    /// It cannot be had at all.
    Broken(anyhow::Error),
}

/// Reads the record as it was last written, whoever has it.
pub fn read(host: &Host) -> Option<Record> {
    let file = File::open(host.kept("record")).ok()?;
    newest(&file).map(|(_, record)| record)
}

/// Takes the record for this process and its children.
pub fn hold(host: &Host) -> Result<Disk, Held> {
    let open = || -> anyhow::Result<(File, File)> {
        std::fs::create_dir_all(host.kept(""))
            .with_context(|| format!("{} cannot be made", host.kept("").display()))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(host.kept("lock")).context("the lock cannot be opened")?;
        let file = options.open(host.kept("record")).context("the record cannot be opened")?;
        Ok((lock, file))
    };
    let (lock, file) = open().map_err(Held::Broken)?;
    match rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Held::Locked),
        Err(error) => return Err(Held::Broken(io::Error::from(error).into())),
    }
    let sequence = newest(&file).map_or(0, |(sequence, _)| sequence);
    Ok(Disk { file, sequence, _lock: lock })
}

impl Disk {
    /// The record as it was last written.
    pub fn read(&self) -> Option<Record> {
        newest(&self.file).map(|(_, record)| record)
    }

    /// Goes on behind what another process has written.
    pub fn catch_up(&mut self) {
        self.sequence = newest(&self.file).map_or(self.sequence, |(sequence, _)| sequence);
    }

    /// Takes the room that the way back needs.
    pub fn prepare(&self, host: &Host) -> io::Result<()> {
        if self.file.metadata()?.len() < 2 * HALF_BYTES as u64 {
            self.file.write_all_at(&vec![b' '; 2 * HALF_BYTES], 0)?;
            self.file.sync_all()?;
        }
        let mut ballast = File::create(host.kept("ballast"))?;
        ballast.write_all(&vec![1; BALLAST_BYTES])?;
        ballast.sync_all()?;
        sync_dir(&host.kept(""))
    }

    /// Writes the record; it is on the disk when this returns.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let json = serde_json::to_string(record).map_err(io::Error::other)?;
        let sequence = self.sequence + 1;
        let sum = sum(sequence, &json);
        let mut half = format!("{MAGIC} {sequence} {} {sum:016x}\n{json}", json.len()).into_bytes();
        if half.len() > HALF_BYTES {
            return Err(io::Error::other("the record is too long"));
        }
        half.resize(HALF_BYTES, b' ');
        self.file.write_all_at(&half, (sequence % 2) * HALF_BYTES as u64)?;
        self.file.sync_data()?;
        self.sequence = sequence;
        Ok(())
    }
}

/// Gives back the room that the way back needs.
pub fn free_ballast(host: &Host) {
    let _ = remove(&host.kept("ballast"));
}

/// Adds a line to the history; the older half goes where it gets long.
pub fn remember(host: &Host, line: &str) -> io::Result<()> {
    let path = host.kept("history");
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > HISTORY_MAX_BYTES) {
        let text = std::fs::read_to_string(&path)?;
        let half = text.len() / 2 + text[text.len() / 2..].find('\n').map_or(0, |at| at + 1);
        std::fs::write(host.kept("history.new"), &text[half..])?;
        std::fs::rename(host.kept("history.new"), &path)?;
    }
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_all()
}

fn newest(file: &File) -> Option<(u64, Record)> {
    let half = |number: u64| {
        let mut bytes = vec![0; HALF_BYTES];
        file.read_exact_at(&mut bytes, number * HALF_BYTES as u64).ok()?;
        parse(std::str::from_utf8(&bytes).ok()?)
    };
    [half(0), half(1)].into_iter().flatten().max_by_key(|(sequence, _)| *sequence)
}

fn parse(half: &str) -> Option<(u64, Record)> {
    let (head, rest) = half.split_once('\n')?;
    let words: Vec<&str> = head.split(' ').collect();
    let [MAGIC, sequence, length, written] = words[..] else { return None };
    let (sequence, length): (u64, usize) = (sequence.parse().ok()?, length.parse().ok()?);
    let json = rest.get(..length)?;
    (format!("{:016x}", sum(sequence, json)) == written).then_some(())?;
    Some((sequence, serde_json::from_str(json).ok()?))
}

/// FNV-1a: tells a torn write from a whole one.
fn sum(sequence: u64, text: &str) -> u64 {
    let bytes = sequence.to_le_bytes();
    bytes
        .iter()
        .chain(text.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
