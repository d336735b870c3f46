//! Signals that this process hears instead of ending by them.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::{Failure, Outcome};

/// What lets go of a machine: Ctrl-C, a polite kill, the end of the terminal.
pub const LETTING_GO: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// What only the program can know the meaning of.
pub const PASSED_ON: [i32; 4] = [libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];
/// That the terminal has another size.
pub const RESIZED: i32 = libc::SIGWINCH;

/// Signals that may wait to be looked at.
const WAITING: usize = 64;

/// The signals that came.
pub struct Signals {
    came: mpsc::Receiver<i32>,
    /// Keeps the channel open where nothing is heard at all.
    _sender: mpsc::Sender<i32>,
}

impl Signals {
    /// Hears these signals from now on, except those that were ignored when this process began: `nohup` and shells
    /// without job control say in this way that a process shall not hear them.
    pub fn hear(numbers: &[i32]) -> Outcome<Self> {
        let (sender, came) = mpsc::channel(WAITING);
        for &number in numbers.iter().filter(|number| !is_ignored(**number)) {
            let mut stream = signal(SignalKind::from_raw(number))
                .map_err(|error| Failure::failed("signals cannot be heard").caused_by(error))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() && sender.send(number).await.is_ok() {}
            });
        }
        Ok(Self { came, _sender: sender })
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        self.came.recv().await.expect("the sender lives as long as this")
    }

    /// A signal that came already.
    pub fn pending(&mut self) -> Option<i32> {
        self.came.try_recv().ok()
    }
}

fn is_ignored(number: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction(2) without a new action only writes the old one, into memory that is large enough for it; zeroed
    // memory is a valid value of it in case the call fails.
    let action = unsafe {
        libc::sigaction(number, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
