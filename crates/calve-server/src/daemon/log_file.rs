//! The server's own log, for people: a file that is kept small.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Size at which the log is moved to `server.log.1`, replacing the one before: weeks of a busy server.
const LOG_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// A file that is moved aside when it is full.
struct RotatingFile {
    path: PathBuf,
    file: File,
    length: u64,
}

/// Writes what this process traces to the file from now on; `CALVE_LOG` chooses how much (`info` by default, the syntax
/// is `tracing`'s). Where the process traces to somewhere already, nothing changes.
pub fn init(path: &Path) -> io::Result<()> {
    let file = RotatingFile::open(path)?;
    let filter = EnvFilter::try_from_env("CALVE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter)
        // It would be told on standard error, which is the same file.
        .log_internal_errors(false)
        .with_writer(Log(Arc::new(Mutex::new(file))))
        .try_init();
    Ok(())
}

/// The log as the tracer writes to it. What cannot be written is lost, and nothing else is: a full disk must not keep the
/// server from its work.
#[derive(Clone)]
struct Log(Arc<Mutex<RotatingFile>>);

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = file.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RotatingFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= LOG_MAX_BYTES {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *self = Self::open(&self.path)?;
        }
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_lost_and_the_next_line_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        let mut file = RotatingFile::open(&path).unwrap();
        // A device that is always full (full(4)).
        file.file = File::options().write(true).open("/dev/full").unwrap();
        let log = Log(Arc::new(Mutex::new(file)));
        log.make_writer().write_all(b"lost").unwrap();
        *log.0.lock().unwrap() = RotatingFile::open(&path).unwrap();
        log.make_writer().write_all(b"kept").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_full_log_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        std::fs::write(&path, "old").unwrap();
        let mut file = RotatingFile::open(&path).unwrap();
        file.length = LOG_MAX_BYTES;
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(dir.path().join("server.log.1")).unwrap(), "old");
    }
}
