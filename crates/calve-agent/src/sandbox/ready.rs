//! The agent's way to the driver that started it: a socket, of which one byte each way says that the machine is made and
//! that it is written down. Before that a machine is nobody's, and must not outlive its driver.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use calve_wire::agent::{KEEP_BYTE, READY_BYTE};
use rustix::fs::{FlockOperation, flock};

use super::SandboxError;

/// The machine's hold on its run directory, and the way to the driver.
#[derive(Debug)]
pub struct Ready {
    driver: UnixStream,
    /// Locked as long as the agent lives: who destroys the machine waits for that.
    dir: fs::File,
}

impl Ready {
    /// Takes the descriptor of `--ready-fd` and locks the run directory. Fails where the driver has died, or the directory
    /// is another agent's: then nothing must be made.
    pub fn new(fd: i32, run_dir: &Path) -> io::Result<Self> {
        // SAFETY: the descriptor was handed over by the command line, for this and nothing else.
        let driver = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let dir = fs::File::open(run_dir)?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        let ready = Self { driver, dir };
        // Looked at behind the lock: if the driver lives now, nobody has destroyed the machine before it was locked.
        if ready.driver_is_gone()? {
            return Err(io::Error::other("the server that asked for the machine has died"));
        }
        Ok(ready)
    }

    fn driver_is_gone(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut polled = [PollFd::new(&self.driver, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Says that the machine is made and its socket listens, and waits until it is written down. An error means that the
    /// driver has died: undo everything. The result must be kept as long as the agent lives.
    pub fn announce(mut self) -> io::Result<Kept> {
        self.driver.write_all(&[READY_BYTE])?;
        let mut answer = [0];
        self.driver.read_exact(&mut answer)?;
        if answer != [KEEP_BYTE] {
            return Err(io::Error::other("the driver gave an unknown answer"));
        }
        // The descriptor may be that of standard input, which must not become something else's.
        let number = self.driver.as_raw_fd();
        let null = fs::File::open("/dev/null")?;
        // SAFETY: replaces the descriptor that `driver` owns by another open one, which it will close in its place.
        if number <= 2 && unsafe { libc::dup2(null.as_raw_fd(), number) } == number {
            std::mem::forget(self.driver);
        }
        Ok(Kept { _dir: self.dir })
    }

    /// Says why there is no machine.
    pub fn fail(mut self, error: &SandboxError) {
        // Without a driver there is nobody to tell.
        let _ = self.driver.write_all(&serde_json::to_vec(error).expect("sentences"));
    }
}

/// The lock on the run directory of a machine that is written down.
#[derive(Debug)]
pub struct Kept {
    _dir: fs::File,
}
