//! The log spool: numbered runs of output, held until the server has said that it has kept them.

use std::collections::VecDeque;

use calve_wire::frame::{CHUNK_MAX_BYTES, Channel, LogEntry};

/// Most bytes that the spool holds before programs block: minutes of chatter while the server restarts, and still small
/// beside the smallest guest.
pub const SPOOL_MAX_BYTES: usize = 8 * 1024 * 1024;
/// What an entry takes beside its bytes: so that output in single bytes is bounded as well.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Numbered output without gaps.
#[derive(Debug, Default)]
pub struct Spool {
    entries: VecDeque<LogEntry>,
    size_bytes: usize,
    last_seq: u64,
}

impl Spool {
    /// Whether one more entry of any size may be added. Who drains the pipes of a dead program need not ask: what is left
    /// there is bounded by the pipes.
    pub fn has_room(&self) -> bool {
        self.size_bytes + CHUNK_MAX_BYTES + ENTRY_OVERHEAD_BYTES <= SPOOL_MAX_BYTES
    }

    /// Adds a run of output of at most [`CHUNK_MAX_BYTES`] and gives it its number.
    pub fn add(&mut self, time_unix_ms: u64, channel: Channel, bytes: Vec<u8>) -> u64 {
        self.last_seq += 1;
        self.size_bytes += bytes.len() + ENTRY_OVERHEAD_BYTES;
        self.entries.push_back(LogEntry { seq: self.last_seq, time_unix_ms, channel, bytes });
        self.last_seq
    }

    /// The number of the last entry that was made; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Forgets everything up to `seq`.
    pub fn kept(&mut self, seq: u64) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.seq <= seq) {
            self.size_bytes -= entry.bytes.len() + ENTRY_OVERHEAD_BYTES;
        }
    }

    /// Resumes behind the last entry that the server has. One that has more than was ever made here spoke with an agent
    /// before this one: what waits is numbered anew behind that, or the server would take it for old.
    pub fn resume(&mut self, server_has: u64) {
        if server_has <= self.last_seq {
            return self.kept(server_has);
        }
        for (entry, seq) in self.entries.iter_mut().zip(server_has + 1..) {
            entry.seq = seq;
        }
        self.last_seq = server_has + self.entries.len() as u64;
    }

    /// The entries behind `seq`, in order.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &LogEntry> {
        let start = self.entries.partition_point(|entry| entry.seq <= seq);
        self.entries.range(start..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(spool: &Spool, after: u64) -> Vec<u64> {
        spool.after(after).map(|entry| entry.seq).collect()
    }

    fn spool_of(count: u64) -> Spool {
        let mut spool = Spool::default();
        (0..count).for_each(|n| assert_eq!(spool.add(n, Channel::Stdout, vec![1]), n + 1));
        spool
    }

    #[test]
    fn entries_stay_until_they_are_kept() {
        let mut spool = spool_of(5);
        assert_eq!(seqs(&spool, 3), [4, 5]);
        spool.kept(2);
        spool.kept(1);
        assert_eq!(seqs(&spool, 0), [3, 4, 5]);
        spool.resume(4);
        assert_eq!((seqs(&spool, 4), spool.last_seq()), (vec![5], 5));
    }

    #[test]
    fn behind_a_server_that_has_more_entries_are_numbered_anew() {
        let mut spool = spool_of(2);
        spool.resume(10);
        assert_eq!((seqs(&spool, 10), spool.last_seq()), (vec![11, 12], 12));
    }

    #[test]
    fn it_fills_with_single_bytes_too_and_empties() {
        let mut spool = Spool::default();
        while spool.has_room() {
            spool.add(0, Channel::Stdout, vec![0]);
        }
        let count = spool.last_seq();
        assert!(count < (SPOOL_MAX_BYTES / ENTRY_OVERHEAD_BYTES) as u64);
        spool.kept(count);
        assert!(spool.has_room());
        assert_eq!(spool.size_bytes, 0);
    }
}
