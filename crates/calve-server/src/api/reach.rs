//! Reaching into a machine: waits until its agent can be spoken to.

use std::sync::Arc;
use std::time::Duration;

use calve_core::State as MachineState;
use calve_wire::api::ProblemKind;
use calve_wire::record::MachineRecord;
use tokio::time::Instant;

use super::Api;
use super::problem::{ApiError, ApiResult};
use crate::agents::LinkError;

/// How long a request waits for a machine that is still being made: a guest in emulation boots for a minute.
const REACH_MAX: Duration = Duration::from_secs(180);
/// Pause between two looks whether it is.
const LOOK: Duration = Duration::from_millis(500);
/// How long it waits for one that was made and is known to be away: its driver says why.
const AWAY_MAX: Duration = Duration::from_secs(15);

impl Api {
    /// The machine's record, once it runs and its agent is heard.
    pub(super) async fn reach(&self, name_or_id: &str) -> ApiResult<Arc<MachineRecord>> {
        let record = self.find(name_or_id).await?;
        if !record.spec.runs().has_agent() {
            let message = format!("there is no agent in {}, as it was adopted", record.name);
            return Err(ApiError::new(ProblemKind::Conflict, message)
                .hint("it has a lease here and nothing else; reach it as you did before, such as by ssh"));
        }
        let begun = Instant::now();
        tokio::select! {
            result = self.reached(&record) => result,
            why = self.given_up(&record) => {
                let (name, seconds) = (&record.name, begun.elapsed().as_secs());
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                let message = format!("the machine {name} was not reached within {seconds} s{why}");
                Err(ApiError::new(ProblemKind::Conflict, message)
                    .hint(format!("`calve status {name}` says what it waits for")))
            }
        }
    }

    /// Returns when a machine has been waited for long enough, with what its driver says of it.
    async fn given_up(&self, record: &MachineRecord) -> Option<String> {
        let until = Instant::now() + REACH_MAX;
        let mut away_until = None;
        loop {
            let (why, now) = (self.world.away(record), Instant::now());
            // It may have been back in between.
            away_until = why.as_ref().and(away_until.or(Some(now + AWAY_MAX)));
            if now >= away_until.unwrap_or(until).min(until) {
                return why;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn reached(&self, record: &MachineRecord) -> ApiResult<Arc<MachineRecord>> {
        let mut watched = self.watches.watch(record.id);
        let mut changes = self.world.changes();
        loop {
            changes.mark_unchanged();
            let now = watched.borrow_and_update().clone();
            let Some(now) = now.filter(|now| !now.state.is_terminal()) else {
                return Err(ended(record));
            };
            let linked = self.world.agents().report(now.id).is_some_and(|report| report.linked);
            match now.state {
                MachineState::Running | MachineState::Draining if linked => return Ok(now),
                _ => {}
            }
            tokio::select! {
                _ = watched.changed() => {}
                _ = changes.changed() => {}
            }
        }
    }
}

fn ended(record: &MachineRecord) -> ApiError {
    ApiError::new(ProblemKind::Conflict, format!("the machine {} has ended", record.name))
        .hint("`calve logs` still shows what it said; `calve run` starts a new one")
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        let kind = match error {
            LinkError::Unknown
            | LinkError::NotLinked
            | LinkError::Broken
            | LinkError::Busy
            | LinkError::StdinTaken
            | LinkError::StreamClosed => ProblemKind::Conflict,
            LinkError::TooManyStreams => ProblemKind::LimitReached,
            LinkError::BadToken => ProblemKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
