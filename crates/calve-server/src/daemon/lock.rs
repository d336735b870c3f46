//! One server a data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Held for as long as the server lives; the kernel lets go of it with the process, however that ends.
pub struct Lock {
    _file: File,
}

/// What a try to take the lock found.
pub enum Taken {
    /// It is ours.
    Ours(Lock),
    /// A server of this process id has it; none where it has not said so yet.
    Theirs(Option<u32>),
}

impl Lock {
    /// Takes the lock if nobody has it.
    pub fn take(path: &Path) -> io::Result<Taken> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Ok(Taken::Theirs(text.trim().parse().ok()));
            }
            Err(error) => return Err(error.into()),
        }
        // Written over and then cut, so that a full disk cannot leave the number half-written in an empty file.
        let pid = format!("{}\n", std::process::id());
        file.seek(SeekFrom::Start(0))?;
        file.write_all(pid.as_bytes())?;
        file.set_len(pid.len() as u64)?;
        Ok(Taken::Ours(Self { _file: file }))
    }
}
