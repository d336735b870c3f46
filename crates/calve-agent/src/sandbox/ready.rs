//! The agent's way to the driver that started it: a socket, of which one byte each way says that the machine is made and
//! that it is written down. Before that a machine is nobody's, and must not outlive its driver.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use calve_wire::agent::{KEEP_BYTE, READY_BYTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};

use super::SandboxError;

/// The machine's hold on its run directory: who destroys the machine waits until it is gone. Keep it for the agent's life.
#[derive(Debug)]
pub struct Hold {
    _dir: fs::File,
}

impl Hold {
    /// Takes the directory; fails where another agent has it, or none is there.
    pub fn on(run_dir: &Path) -> io::Result<Self> {
        let dir = fs::File::open(run_dir)?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { _dir: dir })
    }
}

/// The driver that waits for the machine.
#[derive(Debug)]
pub struct Driver(UnixStream);

impl Driver {
    /// The driver at the other end of the descriptor of `--ready-fd`. Fails where it is gone: if it lives now, behind the
    /// hold on the directory, nobody can have destroyed the machine before.
    pub fn new(socket: OwnedFd, _hold: &Hold) -> io::Result<Self> {
        let driver = UnixStream::from(socket);
        let mut polled = [PollFd::new(&driver, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(io::Error::other("the server that asked for the machine has died"));
        }
        Ok(Self(driver))
    }

    /// Says that the machine is made and its socket listens, and waits until it is written down. An error means that the
    /// driver has died: undo everything.
    pub fn announce(&mut self) -> io::Result<()> {
        let died = |_| io::Error::other("the server that asked for the machine has died");
        self.0.write_all(&[READY_BYTE]).map_err(died)?;
        let mut answer = [0];
        self.0.read_exact(&mut answer).map_err(died)?;
        match answer {
            [KEEP_BYTE] => Ok(()),
            _ => Err(io::Error::other("the driver gave an unknown answer")),
        }
    }

    /// Says why there is no machine.
    pub fn fail(mut self, error: &SandboxError) {
        // Without a driver there is nobody to tell.
        let _ = self.0.write_all(&serde_json::to_vec(error).expect("sentences"));
    }
}
