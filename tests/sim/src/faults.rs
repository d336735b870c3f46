//! The state as one server sees it.

use std::sync::Arc;

use async_trait::async_trait;
use calve_server::state::StateError;
use calve_server::state::memory::{Faults, Operation};

use crate::world::World;

pub struct SimFaults {
    pub world: Arc<World>,
    pub generation: u32,
}

impl SimFaults {
    async fn moment(&self, operation: Operation) -> Result<(), StateError> {
        self.world.point(self.generation).await;
        // A change of this store waits for its writer, so others get their turn; a read is at once.
        if operation == Operation::Change {
            tokio::task::yield_now().await;
            self.world.point(self.generation).await;
        }
        let mut inner = self.world.inner();
        let fails = inner.chances.state_fails;
        if inner.rng.chance(fails) { Err(StateError::Failed("seeded".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Faults for SimFaults {
    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        self.moment(operation).await
    }

    async fn after(&self, operation: Operation) -> Result<(), StateError> {
        self.moment(operation).await
    }
}
