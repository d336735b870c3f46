//! Waiting for one machine's record to change, for any number of requests: one task looks at the state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calve_core::MachineId;
use calve_wire::record::MachineRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::records::View;
use crate::state::State;

/// A record as it changes; none once it was removed.
pub type Watched = watch::Receiver<Option<Arc<MachineRecord>>>;

/// Who waits for which machine. Cloning gives another handle.
#[derive(Clone)]
pub struct Watches {
    view: View,
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = BTreeMap<MachineId, watch::Sender<Option<Arc<MachineRecord>>>>;

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
        let watch = waiting.entry(id).or_insert_with(|| watch::Sender::new(None));
        // Under the lock, so that no change falls between this look and the task's next.
        let record = self.view.by_id(id);
        watch.send_if_modified(|known| replace(known, record));
        watch.subscribe()
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
                watch.send_if_modified(|known| replace(known, self.view.by_id(*id)));
                watch.receiver_count() > 0
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn replace(known: &mut Option<Arc<MachineRecord>>, record: Option<Arc<MachineRecord>>) -> bool {
    let same = match (&known, &record) {
        // An ended machine's record is parsed anew each time that it is asked for.
        (Some(known), Some(record)) => Arc::ptr_eq(known, record) || known == record,
        (None, None) => true,
        _ => false,
    };
    *known = record;
    !same
}
