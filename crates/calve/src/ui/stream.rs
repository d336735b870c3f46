//! A program's output, byte by byte as it came, to our own standard output and error.
//!
//! One thread writes both, so that a reader who pauses never stops this program from hearing a Ctrl-C, and what was
//! written to both in turn appears in turn.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::failure::{Failure, Outcome};

/// Chunks (of at most 64 KiB) that may wait for the writing thread before their sender waits too.
const WAITING_CHUNKS: usize = 8;

/// One of our outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Writes to our standard output and error.
pub struct Output {
    chunks: mpsc::Sender<(OutputStream, Bytes)>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the writing thread.
    pub fn start() -> Outcome<Self> {
        let (chunks, waiting) = mpsc::channel(WAITING_CHUNKS);
        let (tell, ended) = oneshot::channel();
        let no_thread = |error| Failure::failed("no thread can be started").caused_by(error);
        let stdout = own(io::stdout().as_fd()).map_err(Failure::output)?;
        // A closed standard error is no reason to fail: what goes there is lost, as the user wished.
        let stderr = own(io::stderr().as_fd()).ok();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || drop(tell.send(write_all(waiting, stdout, stderr))))
            .map_err(no_thread)?;
        Ok(Self { chunks, ended })
    }

    /// Where chunks are sent to; waits where the reader of our output is slow, fails once it has gone.
    pub fn sender(&self) -> mpsc::Sender<(OutputStream, Bytes)> {
        self.chunks.clone()
    }

    /// Waits until the writing thread has met an error. Nothing is lost when this is dropped.
    pub async fn broken(&mut self) -> Failure {
        match (&mut self.ended).await {
            Ok(Err(error)) => Failure::output(error),
            // It ends without an error only when its senders are gone, and `self` holds one.
            Ok(Ok(())) | Err(_) => Failure::failed("standard output cannot be written"),
        }
    }

    /// Waits until everything is written.
    pub async fn finish(self) -> Outcome<()> {
        drop(self.chunks);
        match self.ended.await {
            Ok(result) => result.map_err(Failure::output),
            Err(_) => Err(Failure::failed("standard output cannot be written")),
        }
    }
}

fn own(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

fn write_all(
    mut waiting: mpsc::Receiver<(OutputStream, Bytes)>,
    mut stdout: File,
    mut stderr: Option<File>,
) -> io::Result<()> {
    while let Some((stream, bytes)) = waiting.blocking_recv() {
        match stream {
            OutputStream::Stdout => write(&mut stdout, &bytes)?,
            OutputStream::Stderr => {
                if let Some(file) = &mut stderr
                    && write(file, &bytes).is_err()
                {
                    stderr = None;
                }
            }
        }
    }
    Ok(())
}

/// Writes everything, also to a pipe that somebody else has made non-blocking.
fn write(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_writable(file: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::new(file, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
