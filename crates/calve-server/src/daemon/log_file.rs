//! The server's own log, for people: a file that is kept small.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

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
        .with_writer(Mutex::new(file))
        .try_init();
    Ok(())
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
