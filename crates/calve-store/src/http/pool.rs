//! Connections that wait for the next request.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::connect::Sender;

/// Connections that are kept for later; more are closed after use.
const IDLE_MAX: usize = 32;
/// How long a connection is kept: servers and what lies between close idle ones, ours after 30 s.
const IDLE_FOR_MAX: Duration = Duration::from_secs(20);

/// The connections of one client that nobody uses just now.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Instant, Sender)>>,
}

impl Pool {
    /// A connection that seems to be alive, the one used last first.
    pub(super) fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, sender)| since.elapsed() < IDLE_FOR_MAX && !sender.is_closed());
        let at = idle.iter().rposition(|(_, sender)| sender.is_ready())?;
        Some(idle.remove(at).1)
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(super) fn put(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
    }
}
