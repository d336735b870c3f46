//! Chunks on disk, the newest of them: a file without a name that is written around and around.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use crate::chunk::ChunkId;

/// A file of chunks, gone with its process.
#[derive(Debug)]
pub struct Ring {
    file: File,
    bytes: u64,
    head: u64,
    places: HashMap<ChunkId, (u64, u32)>,
    /// What is written, the oldest first.
    written: VecDeque<(u64, u32, ChunkId)>,
}

impl Ring {
    /// A ring of at most `bytes` in a directory.
    pub fn new(dir: &Path, bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(dir)?;
        Ok(Self { file, bytes, head: 0, places: HashMap::new(), written: VecDeque::new() })
    }

    /// Whether it has the chunk.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.places.contains_key(id)
    }

    /// A chunk's plain bytes, where it has them.
    pub fn get(&self, id: &ChunkId) -> io::Result<Option<Bytes>> {
        let Some((offset, len)) = self.places.get(id) else { return Ok(None) };
        let mut bytes = vec![0; *len as usize];
        self.file.read_exact_at(&mut bytes, *offset)?;
        Ok(Some(bytes.into()))
    }

    /// Keeps a chunk in place of the oldest.
    pub fn put(&mut self, id: ChunkId, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if self.places.contains_key(&id) || len > self.bytes {
            return Ok(());
        }
        if self.head + len > self.bytes {
            while self.written.front().is_some_and(|(offset, ..)| *offset >= self.head) {
                self.forget_oldest();
            }
            self.head = 0;
        }
        let end = self.head + len;
        while self.written.front().is_some_and(|(offset, ..)| (self.head..end).contains(offset)) {
            self.forget_oldest();
        }
        self.file.write_all_at(bytes, self.head)?;
        self.places.insert(id, (self.head, bytes.len() as u32));
        self.written.push_back((self.head, bytes.len() as u32, id));
        self.head = end;
        Ok(())
    }

    fn forget_oldest(&mut self) {
        if let Some((_, _, id)) = self.written.pop_front() {
            self.places.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_chunks_are_kept_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::new(dir.path(), 1000).unwrap();
        let chunk = |n: usize| vec![n as u8; 50 + n * 37 % 200];
        let id = |n: usize| ChunkId::of(&n.to_le_bytes());
        for n in 0..200 {
            ring.put(id(n), &chunk(n)).unwrap();
            let kept: Vec<_> = (0..=n).filter(|n| ring.contains(&id(*n))).collect();
            for n in &kept {
                assert_eq!(ring.get(&id(*n)).unwrap().unwrap(), chunk(*n));
            }
            assert_eq!(kept, (n + 1 - kept.len()..=n).collect::<Vec<_>>(), "the newest");
            assert!(kept.len() >= 2.min(n + 1));
        }
        ring.put(id(1000), &[0; 1001]).unwrap();
        assert!(!ring.contains(&id(1000)) && ring.get(&id(1000)).unwrap().is_none());
    }
}
