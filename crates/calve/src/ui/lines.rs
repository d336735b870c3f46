//! Output of many pieces: gathered, in order, and written when a batch is complete.

use std::io::Write;

use super::OutputStream;
use crate::failure::{Failure, Outcome};

/// Bytes that are gathered before they are written.
const BATCH_BYTES: usize = 64 * 1024;

/// Pieces for our standard output and error, in order.
#[derive(Default)]
pub struct Lines {
    waiting: Vec<u8>,
    to: Option<OutputStream>,
    /// Whether the next byte of standard output and error is in the middle of a line.
    in_line: [bool; 2],
}

impl Lines {
    /// Adds bytes as they are.
    pub fn write(&mut self, to: OutputStream, bytes: &[u8]) -> Outcome<()> {
        if self.to != Some(to) || self.waiting.len() > BATCH_BYTES {
            self.flush()?;
            self.to = Some(to);
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds bytes, with a prefix before each line that begins in them.
    pub fn write_prefixed(&mut self, to: OutputStream, prefix: &str, bytes: &[u8]) -> Outcome<()> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.in_line[to as usize] {
                self.write(to, prefix.as_bytes())?;
            }
            self.write(to, line)?;
            self.in_line[to as usize] = !line.ends_with(b"\n");
        }
        Ok(())
    }

    /// Writes what is gathered.
    pub fn flush(&mut self) -> Outcome<()> {
        let result = match self.to {
            None | Some(OutputStream::Stdout) => super::data(&self.waiting),
            Some(OutputStream::Stderr) => std::io::stderr().write_all(&self.waiting).map_err(Failure::output),
        };
        self.waiting.clear();
        result
    }
}
