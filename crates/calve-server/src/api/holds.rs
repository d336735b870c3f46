//! Held machines: a machine whose `calve run` shows its output in a terminal ends when that client is gone for good.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calve_core::{MachineId, StopReason};
use calve_wire::event::What;

use super::Api;
use crate::reconcile::records;
use crate::world::now;

/// Time that a client has to attach to the machine that it asked for, or again after the server was restarted: as long
/// as clients try.
const ATTACH_MAX: Duration = Duration::from_secs(30);
/// Time that a client has to come back after its connection broke: over TCP that may be the network's fault.
const RETURN_MAX: Duration = Duration::from_secs(2);

/// How many clients hold each machine.
#[derive(Clone, Default)]
pub struct Holds(Arc<Mutex<HashMap<MachineId, u32>>>);

impl Holds {
    fn change(&self, id: MachineId, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = change(counts.get(&id).copied().unwrap_or(0));
        if count == 0 {
            counts.remove(&id)
        } else {
            counts.insert(id, count)
        };
        count
    }

    fn are_none(&self, id: MachineId) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}

/// One client's hold on a machine; dropped when its connection ends.
pub struct Hold {
    api: Api,
    id: MachineId,
}

impl Hold {
    /// Holds the machine as long as the result lives.
    pub fn on(api: &Api, id: MachineId) -> Self {
        api.holds.change(id, |count| count + 1);
        Self { api: api.clone(), id }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A server that ends breaks connections itself: the next one waits for the client.
        if self.api.holds.change(self.id, |count| count.saturating_sub(1)) == 0
            && !self.api.shutdown.is_cancelled()
        {
            end_unless_held(&self.api, self.id, RETURN_MAX);
        }
    }
}

/// Gives the client of a held machine that was just declared its time to attach.
pub fn expect(api: &Api, id: MachineId) {
    end_unless_held(api, id, ATTACH_MAX);
}

/// Gives the clients of held machines of a former server their time to come back.
pub async fn expect_all(api: &Api) {
    match api.view.refresh(&*api.state).await {
        Ok(()) => {
            for record in api.view.all_living().iter().filter(|record| record.held) {
                expect(api, record.id);
            }
        }
        Err(error) => tracing::warn!(error = crate::chain(&error), "held machines are not known"),
    }
}

fn end_unless_held(api: &Api, id: MachineId, after: Duration) {
    let api = api.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            () = api.shutdown.cancelled() => return,
        }
        let Ok(record) = records::get(&*api.state, &api.view, &id.to_string()).await else { return };
        if !api.holds.are_none(id) || record.stop.is_some() || record.state.is_terminal() {
            return;
        }
        let reason = StopReason::Requested;
        match records::request_stop(&*api.state, &api.view, id, None, reason, now()).await {
            Ok(record) => api.context.events.append("loop", record.id, &record.name, What::StopRequested),
            Err(error) => {
                tracing::warn!(machine = %id, error = crate::chain(&error), "a left machine runs on")
            }
        }
    });
}
