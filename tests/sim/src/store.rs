//! The state as one server sees it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_server::state::StateError;
use calve_server::state::memory::{Faults, Operation};

use crate::aim::{How, When, Which};
use crate::faults::Fault;
use crate::world::World;

pub struct SimFaults {
    pub world: Arc<World>,
    pub generation: u32,
}

impl SimFaults {
    async fn moment(&self, operation: Operation, when: When) -> Result<(), StateError> {
        if operation == Operation::Change {
            if self.world.hits(Which::Write, when, How::Crashes) {
                self.world.kill("server crashes on purpose");
            }
            if self.world.hits(Which::Write, when, How::Fails) {
                return Err(StateError::Failed("on purpose".into()));
            }
        }
        self.world.point(self.generation).await;
        // A change of this store waits for its writer, so others get their turn; a read is at once.
        if operation == Operation::Change {
            let pause = {
                let mut inner = self.world.inner();
                // A few are so slow that a claimed name counts as abandoned meanwhile.
                let slow = inner.faults.happens(Fault::StateSlow);
                if slow { inner.rng.pick(&[1, 5, 20, 100, 300, 15_000]) } else { 0 }
            };
            match pause {
                0 => tokio::task::yield_now().await,
                ms => {
                    let _slow = self.world.slow_change();
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
            }
            self.world.point(self.generation).await;
        }
        if self.world.happens(Fault::State) { Err(StateError::Failed("seeded".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Faults for SimFaults {
    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        self.moment(operation, When::Before).await
    }

    async fn after(&self, operation: Operation) -> Result<(), StateError> {
        self.moment(operation, When::After).await
    }
}
