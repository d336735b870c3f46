//! Pipes and terminals without blocking.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use calve_wire::frame::CHUNK_MAX_BYTES;
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::descriptor::watched;

/// The agent's end of a pipe, or the master of a terminal.
pub struct Pipe(AsyncFd<OwnedFd>);

/// What one look at a [`Pipe`] gave.
pub enum Read {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing now.
    Later,
    /// Nothing any more.
    End,
}

impl Pipe {
    /// Takes over a descriptor and stops it from blocking; call inside of the runtime.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(watched(descriptor)?))
    }

    /// A pipe that the agent reads: its end, and the other end for a process.
    pub fn from_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self::new(reader)?, writer))
    }

    /// A pipe that the agent writes: its end, and the other end for a process.
    pub fn to_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self::new(writer)?, reader))
    }

    /// The descriptor, for what is done to terminals.
    pub fn descriptor(&self) -> impl AsFd + '_ {
        self.0.get_ref()
    }

    /// Reads what is there, at most [`CHUNK_MAX_BYTES`].
    pub fn try_read(&self) -> Read {
        let mut bytes = Vec::with_capacity(CHUNK_MAX_BYTES);
        loop {
            return match rustix::io::read(self.0.get_ref(), rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(0) => Read::End,
                Ok(_) => {
                    bytes.shrink_to_fit();
                    Read::Bytes(bytes)
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => Read::Later,
                // A terminal's master says EIO once nobody holds the other end (pty(7)).
                Err(_) => Read::End,
            };
        }
    }

    /// Waits for bytes; none at the end. Once `writer_gone` is true, the end is also where nothing is there any more: a
    /// process that inherited the other end may keep it open for ever.
    pub async fn read(&self, writer_gone: &mut watch::Receiver<bool>) -> Option<Vec<u8>> {
        loop {
            let finishing = *writer_gone.borrow_and_update();
            match self.try_read() {
                Read::Bytes(bytes) => return Some(bytes),
                Read::End => return None,
                Read::Later if finishing => return None,
                Read::Later => {}
            }
            tokio::select! {
                ready = self.0.readable() => {
                    // The state is cleared only after a read that found nothing, or an event in between would be lost.
                    let Ok(mut guard) = ready else { return None };
                    match self.try_read() {
                        Read::Bytes(bytes) => return Some(bytes),
                        Read::End => return None,
                        Read::Later => guard.clear_ready(),
                    }
                }
                changed = writer_gone.changed() => {
                    if changed.is_err() {
                        // Nobody will say so any more: only the true end counts.
                        let _ = self.0.readable().await;
                    }
                }
            }
        }
    }

    /// Writes all of it; an error where the other end is closed.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            let written = guard.try_io(|descriptor| Ok(rustix::io::write(descriptor.get_ref(), bytes)?));
            match written {
                Ok(count) => bytes = &bytes[count?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_pipe_that_somebody_keeps_open_ends_once_its_writer_is_gone() {
        let (pipe, other_end) = Pipe::from_process().expect("a pipe");
        rustix::io::write(&other_end, b"last words").expect("room");
        let (gone, mut writer_gone) = watch::channel(false);
        assert_eq!(pipe.read(&mut writer_gone).await.as_deref(), Some(b"last words".as_slice()));
        rustix::io::write(&other_end, b"more").expect("room");
        gone.send(true).expect("a receiver");
        assert_eq!(pipe.read(&mut writer_gone).await.as_deref(), Some(b"more".as_slice()));
        assert_eq!(pipe.read(&mut writer_gone).await, None);
    }
}
