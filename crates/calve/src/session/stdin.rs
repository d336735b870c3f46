//! Standard input, read by a thread of its own: a terminal or pipe that says nothing holds up nobody, and the thread ends
//! with the process.

use std::io::IsTerminal;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use tokio::sync::mpsc;

use crate::failure::{Failure, Outcome};

/// Most bytes of one chunk: a full pipe (pipe(7)).
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that may wait to be sent: what was read and not sent is lost to the shell afterwards.
const WAITING_CHUNKS: usize = 2;
/// Time between two looks at whether this process is in the terminal's foreground again.
const FOREGROUND_PAUSE: Duration = Duration::from_millis(200);

/// Whether there is anything to read at all: `/dev/null` is how scripts say that there is not.
pub fn is_worth_reading() -> bool {
    let null = rustix::fs::stat("/dev/null").map(|stat| stat.st_rdev);
    let ours = rustix::fs::fstat(stdin()).map(|stat| stat.st_rdev);
    ours.is_ok_and(|ours| ours == 0 || null != Ok(ours))
}

/// Starts to read; the channel ends with the input.
pub fn start() -> Outcome<mpsc::Receiver<Bytes>> {
    let (chunks, waiting) = mpsc::channel(WAITING_CHUNKS);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read_all(&chunks))
        .map_err(|error| Failure::failed("no thread can be started").caused_by(error))?;
    Ok(waiting)
}

fn read_all(chunks: &mpsc::Sender<Bytes>) {
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        block_sigttin();
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if chunks.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None);
            }
            Err(Errno::IO) if terminal && in_background() => std::thread::sleep(FOREGROUND_PAUSE),
            Err(_) => return,
        }
    }
}

/// With it blocked, reading a terminal from the background fails instead of stopping the whole process (tty_ioctl(4),
/// `n_tty_read`): `calve run … &` runs on and leaves the terminal to the shell.
fn block_sigttin() {
    // SAFETY: the set is initialised by sigemptyset before it is used, and pthread_sigmask changes this thread alone.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTIN);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

fn in_background() -> bool {
    rustix::termios::tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}
