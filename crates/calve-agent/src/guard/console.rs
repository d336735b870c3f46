//! What a guest and QEMU print, kept within bounds.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

use calve_wire::guard::{CONSOLE_FILE, CONSOLE_KEPT_BYTES, CONSOLE_MAX_BYTES};

/// Most bytes that are remembered of what came last: a panic's message and its trace.
const TAIL_MAX_BYTES: usize = 8 * 1024;

/// The last bytes of an output.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Adds what came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Cut rarely, not at each call.
        if self.bytes.len() > 2 * TAIL_MAX_BYTES {
            self.bytes.drain(..self.bytes.len() - TAIL_MAX_BYTES);
        }
    }

    /// The lines, oldest first; a first one may be cut.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
    }
}

/// The console's file in the working directory.
#[derive(Debug)]
pub(super) struct Console {
    file: File,
    length: u64,
    tail: Tail,
}

impl Console {
    /// Begins it anew.
    pub(super) fn create() -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(CONSOLE_FILE)?;
        Ok(Self { file, length: 0, tail: Tail::default() })
    }

    /// Adds what came. A full disk loses console output and nothing else.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        if self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
        }
        if self.length > CONSOLE_MAX_BYTES {
            let _ = self.drop_first_half();
        }
    }

    /// What came last.
    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    fn drop_first_half(&mut self) -> io::Result<()> {
        let mut rest = Vec::new();
        self.file.seek(SeekFrom::Start(self.length - CONSOLE_KEPT_BYTES))?;
        self.file.read_to_end(&mut rest)?;
        let new = format!("{CONSOLE_FILE}.new");
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&new)?;
        file.write_all(&rest)?;
        std::fs::rename(&new, CONSOLE_FILE)?;
        self.file = file;
        self.length = rest.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\r\n").as_bytes());
        }
        assert_eq!(tail.lines().last().unwrap(), "line 9999");
        assert!(tail.bytes.len() <= 2 * TAIL_MAX_BYTES);
    }
}
