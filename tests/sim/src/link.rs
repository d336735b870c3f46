//! A server's link to an agent.

use calve_server::reconcile::AgentReport;
use calve_wire::agent::Status;

use crate::host::{Ms, Vm};
use crate::rng::Rng;

/// A server's link to an agent.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// When it is up (again).
    pub up_at: Ms,
    /// When it breaks.
    pub breaks_at: Option<Ms>,
    pub linked: bool,
    pub heard: Option<Status>,
    pub log_complete: bool,
    /// What a new connection begins with.
    pub lease: (Option<Ms>, u64),
}

impl Link {
    /// What the server knows by it.
    pub fn report(&self) -> AgentReport {
        AgentReport { linked: self.linked, status: self.heard.clone(), log_complete: self.log_complete }
    }

    /// Does what is due; gives when something is due next. `breaks` is the chance that a new connection breaks.
    pub fn step(&mut self, vm: Option<&mut Vm>, now: Ms, rng: &mut Rng, breaks: u64) -> Option<Ms> {
        let Some(vm) = vm.filter(|vm| vm.speaks(now)) else {
            self.linked = false;
            return None;
        };
        if self.breaks_at.is_some_and(|at| at <= now) {
            (self.linked, self.breaks_at) = (false, None);
            self.up_at = now + rng.range(10, 20_000);
        }
        if self.up_at > now {
            return Some(self.up_at);
        }
        if !self.linked {
            self.linked = true;
            self.breaks_at = rng.chance(breaks).then(|| now + rng.range(1, 30_000));
            vm.tell_lease(self.lease, now);
        }
        self.heard = Some(vm.status());
        self.log_complete = vm.log_complete(now);
        self.breaks_at
    }
}
