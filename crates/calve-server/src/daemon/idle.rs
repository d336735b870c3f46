//! Idleness: a server that nobody asks and that looks after nothing ends by itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::reconcile::records::View;
use crate::state::State;

/// What tells whether the server is idle.
pub(super) struct Idle {
    pub(super) state: Arc<dyn State>,
    pub(super) view: View,
    pub(super) connections: watch::Receiver<usize>,
    pub(super) exit_after: Option<Duration>,
}

impl Idle {
    /// Returns once the server has been idle without a break for as long as it should: no connection, and no machine that
    /// has not ended. Dropped and called again, it counts anew.
    pub(super) async fn long_enough(&self) {
        let Some(exit_after) = self.exit_after else { return std::future::pending().await };
        let mut connections = self.connections.clone();
        loop {
            if connections.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let seen = self.view.seen();
            match self.view.refresh(&*self.state).await {
                Ok(()) if self.view.living() == 0 => {}
                // Machines end by changes of the state; an unreadable one may hold machines.
                _ => {
                    self.state.changed(seen.max(self.view.seen())).await;
                    continue;
                }
            }
            let seen = self.view.seen();
            tokio::select! {
                () = tokio::time::sleep(exit_after) => return,
                _ = self.state.changed(seen) => {}
                _ = connections.wait_for(|count| *count > 0) => {}
            }
        }
    }
}
