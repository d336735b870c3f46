//! The binary cache over HTTP: what Nix asks for, and calve's own protocol for chunks.

mod access;
mod answer;
mod body;
mod protocol;
pub mod tokens;

use std::sync::Arc;

use axum::Router;
use calve_nix::StorePath;
use calve_store::remote::Remote;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use access::{Gate, Visibility};
use answer::{Answered, Refusal};

/// Bytes of requests that are held in memory at once; further requests wait.
const BODIES_MAX_BYTES: u64 = 128 << 20;
/// What room is counted in.
const ROOM_UNIT_BYTES: u64 = 1024;

/// What requests need.
pub struct Context {
    /// What the cache holds.
    pub remote: Arc<dyn Remote>,
    /// Who may do what.
    pub gate: Gate,
    room: Arc<Semaphore>,
}

impl Context {
    /// A cache behind a gate.
    pub fn new(remote: Arc<dyn Remote>, gate: Gate) -> Self {
        let room = (BODIES_MAX_BYTES / ROOM_UNIT_BYTES) as usize;
        Self { remote, gate, room: Arc::new(Semaphore::new(room)) }
    }

    /// Waits until there is room for a body of so many bytes.
    async fn room(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = bytes.min(BODIES_MAX_BYTES).div_ceil(ROOM_UNIT_BYTES) as u32;
        self.room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    fn has_upstreams(&self) -> bool {
        false
    }

    async fn fetch_closure(&self, _roots: &[StorePath]) -> Answered<()> {
        Err(Refusal::missing("closure"))
    }
}

/// The cache's router.
pub fn router(context: Context) -> Router {
    Router::new().merge(protocol::routes()).with_state(Arc::new(context))
}
