//! The binary cache over HTTP: what Nix asks for, and calve's own protocol for chunks.
//!
//! ```text
//! request ─▶ gate (token ─▶ what may be seen) ─▶ nix | protocol ─▶ Cache ─▶ (miss) upstreams
//! ```
//! What may not be seen is answered like what is not there.

mod access;
mod answer;
mod body;
mod embedded;
mod kept;
mod listen;
mod nix;
mod protocol;
pub mod tokens;
mod upstream;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use calve_store::cache::Cache;
use calve_store::http::ProblemKind;
use calve_store::remote::Manifest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing_subscriber::EnvFilter;

pub(crate) use access::token_of;
pub use access::{Gate, Visibility};
use answer::{Answered, Refusal};
pub use embedded::{Embedded, MACHINE_PINS, MaterialiseError};
use kept::Kept;
pub use kept::{KEPT_GRACE, collect_kept};
pub use listen::serve;
use tokens::Tokens;
pub use upstream::Upstreams;

/// Bytes of requests that are held in memory at once; further requests wait.
const BODIES_MAX_BYTES: u64 = 128 << 20;
/// Bytes of messages that are unpacked at once; further ones wait, and nobody who has room here waits for anything else.
const UNPACKED_MAX_BYTES: u64 = 128 << 20;
/// What room is counted in.
const ROOM_UNIT_BYTES: u64 = 1024;

/// Says on standard error from now on what goes wrong in a cache; `CALVE_LOG` chooses how much (`info` by default, the syntax
/// is `tracing`'s). Where the process traces to somewhere already, nothing changes.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("CALVE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

/// What requests need.
struct Context {
    cache: Cache,
    gate: Gate,
    upstreams: Arc<Upstreams>,
    kept: Kept,
    room: Arc<Semaphore>,
    unpacked: Arc<Semaphore>,
}

/// Waits for so many bytes of a room that has `max`.
async fn wait_for(room: &Arc<Semaphore>, bytes: u64, max: u64) -> OwnedSemaphorePermit {
    let units = bytes.min(max).div_ceil(ROOM_UNIT_BYTES) as u32;
    room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed")
}

impl Context {
    /// Waits until there is room for a body of so many bytes.
    async fn room(&self, bytes: u64) -> OwnedSemaphorePermit {
        wait_for(&self.room, bytes, BODIES_MAX_BYTES).await
    }

    /// Waits until there is room for a message that may have so many bytes unpacked.
    async fn room_to_unpack(&self, bytes: u64) -> OwnedSemaphorePermit {
        wait_for(&self.unpacked, bytes, UNPACKED_MAX_BYTES).await
    }

    /// The path with this hash part, where it lies here.
    async fn find(&self, hash_part: &str) -> Answered<Option<Manifest>> {
        self.cache.find(hash_part).await.map_err(|error| error.into_remote("calve").into())
    }

    /// The path with this hash part, fetched from an upstream where it does not lie here yet.
    async fn obtain(&self, hash_part: &str) -> Answered<Option<Manifest>> {
        let found = self.find(hash_part).await?;
        if found.is_some() || self.upstreams.is_empty() {
            return Ok(found);
        }
        match self.upstreams.fetch(&self.cache, hash_part).await? {
            true => self.find(hash_part).await,
            false => Ok(None),
        }
    }
}

/// The router of a cache; to be called within a tokio runtime.
pub fn router(cache: Cache, visibility: Visibility, upstreams: Upstreams) -> Router {
    let [router] = routers(&cache, [visibility], upstreams);
    router
}

/// Routers of one cache for callers of several kinds, who share its room for requests.
fn routers<const N: usize>(
    cache: &Cache,
    visibilities: [Visibility; N],
    upstreams: Upstreams,
) -> [Router; N] {
    let room = Arc::new(Semaphore::new((BODIES_MAX_BYTES / ROOM_UNIT_BYTES) as usize));
    let unpacked = Arc::new(Semaphore::new((UNPACKED_MAX_BYTES / ROOM_UNIT_BYTES) as usize));
    let upstreams = Arc::new(upstreams);
    visibilities.map(|visibility| {
        routes(Context {
            gate: Gate::new(visibility, Tokens::new(cache.dir())),
            kept: Kept::new(cache.dir()),
            room: room.clone(),
            unpacked: unpacked.clone(),
            upstreams: upstreams.clone(),
            cache: cache.clone(),
        })
    })
}

fn routes(context: Context) -> Router {
    Router::new()
        .merge(protocol::routes())
        .merge(nix::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(context))
}

async fn unknown(method: Method, uri: Uri) -> Refusal {
    Refusal::missing(format!("{method} {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} cannot be asked with {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, ProblemKind::Failed, message)
}

/// Runs blocking work; a panic in it is passed on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
