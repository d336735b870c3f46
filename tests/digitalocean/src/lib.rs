//! An emulator of DigitalOcean's API v2, for tests: stateful, with pages, tags, latency, faults, lagging lists and rate
//! limits. It makes no machines by itself; a [`Backing`] may.
//!
//! Held to the vendor's own client in `tests/pydo.rs`. What it does not know it answers with 404, as an error of the test.

mod api;
mod catalog;
pub mod faults;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faults::{Fault, Faults};
pub use state::Droplet;
use state::State;

/// The token that it knows.
pub const TOKEN: &str = "dop_v1_emulated";

/// Makes something real of droplets.
pub trait Backing: Send + Sync {
    /// The droplet was created.
    fn created(&self, droplet: &Droplet);
    /// The droplet was destroyed.
    fn destroyed(&self, id: u64);
}

/// How an emulator behaves.
#[derive(Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// Time that each request takes.
    pub latency: Duration,
    /// How long lists show what was before.
    pub list_lag: Duration,
    /// How long a droplet is `new`.
    pub boot: Duration,
    /// Most requests in a window of this length.
    pub rate: Option<(u32, Duration)>,
    /// Most droplets of the account.
    pub droplet_limit: usize,
    /// Makes something real of droplets.
    pub backing: Option<Arc<dyn Backing>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            latency: Duration::ZERO,
            list_lag: Duration::ZERO,
            boot: Duration::ZERO,
            rate: None,
            droplet_limit: 1000,
            backing: None,
        }
    }
}

pub(crate) struct Shared {
    options: Options,
    state: Mutex<State>,
    faults: Mutex<Faults>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running emulator; it ends with its runtime or when it is dropped.
pub struct Emulator {
    shared: Arc<Shared>,
    /// Address of its API, without `/v2`.
    pub url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Emulator {
    /// Starts one; to be called within a tokio runtime.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(options.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(url.clone())),
            faults: Mutex::new(Faults::new(options.rate)),
            options,
        });
        let router = api::router(shared.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { shared, url, server })
    }

    /// The next requests that it fits to meet this fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults().plans.plan(fault);
    }

    /// Every droplet that exists, whatever lists show.
    pub fn droplets(&self) -> Vec<Droplet> {
        self.shared.state().droplets().cloned().collect()
    }

    /// How many droplets were ever made.
    pub fn created(&self) -> usize {
        self.shared.state().created()
    }

    /// Every tag that exists.
    pub fn tags(&self) -> Vec<String> {
        self.shared.state().tags.keys().cloned().collect()
    }

    /// How many requests were answered with 429.
    pub fn refused_for_rate(&self) -> usize {
        self.shared.faults().refused_for_rate
    }

    /// How many requests there were.
    pub fn requests(&self) -> usize {
        self.shared.faults().requests
    }

    /// Waits for the end, which comes with the runtime.
    pub async fn serve(mut self) {
        let _ = (&mut self.server).await;
    }
}
