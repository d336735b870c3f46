//! Waiting for one machine's record to change, for any number of requests: one task looks at the state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calve_core::MachineId;
use calve_wire::record::MachineRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::records::{Newer, View};
use crate::state::{Revision, State};

/// A record as it changes; none once it was removed.
pub type Watched = watch::Receiver<Option<Arc<MachineRecord>>>;

/// Who waits for which machine. Cloning gives another handle.
#[derive(Clone)]
pub struct Watches {
    view: View,
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = BTreeMap<MachineId, Watch>;

#[derive(Default)]
struct Watch {
    /// Of the record that was shown last.
    revision: Option<Revision>,
    sender: watch::Sender<Option<Arc<MachineRecord>>>,
}

impl Watch {
    /// Shows the record as it is now.
    fn look(&mut self, view: &View, id: MachineId) {
        let (revision, record) = match view.newer_than(id, self.revision) {
            Newer::Same => return,
            Newer::Changed(revision, record) => (Some(revision), Some(record)),
            Newer::Gone => (None, None),
        };
        self.revision = revision;
        self.sender.send_if_modified(|known| {
            let changed = *known != record;
            *known = record;
            changed
        });
    }
}

impl Watches {
    /// Looks at every change of the state, until `shutdown`.
    pub fn start(state: Arc<dyn State>, view: View, shutdown: CancellationToken) -> Self {
        let watches = Self { view, waiting: Arc::default() };
        let this = watches.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(this.look(state)).await });
        watches
    }

    /// The record from now on.
    pub fn watch(&self, id: MachineId) -> Watched {
        let mut waiting = self.lock();
        let watch = waiting.entry(id).or_default();
        // Under the lock, so that no change falls between this look and the task's next.
        watch.look(&self.view, id);
        watch.sender.subscribe()
    }

    async fn look(self, state: Arc<dyn State>) {
        let mut seen = 0;
        loop {
            seen = state.changed(seen).await;
            if let Err(error) = self.view.refresh(&*state).await {
                tracing::error!(%error, "the records cannot be read");
                continue;
            }
            self.lock().retain(|id, watch| {
                watch.look(&self.view, *id);
                watch.sender.receiver_count() > 0
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
