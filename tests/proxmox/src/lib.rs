//! An emulator of Proxmox VE's API, for tests: a cluster of two nodes, with tasks that take time, locks of machines and
//! storages that are given up on, API tokens and tickets, uploads and faults, over TLS with a certificate of its own. It
//! makes no machines by itself; a [`Backing`] may.
//!
//! Written after Proxmox VE 9: what is locked when, what a clone shows while it is made, and the words of refusals are those of
//! its API. Held to `proxmoxer` in `tests/proxmoxer.rs`. What it does not know it answers with 501, as Proxmox VE does.

mod api;
mod cluster;
mod locks;
mod state;
mod tasks;
mod tls;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use digitalocean_emulator::faults::{Fault, FaultKind, Plans};
use state::State;
pub use state::Vm;

/// The API token that it knows, whole.
pub const TOKEN: &str = "calve@pve!emulated=11d0f4ce-6f3a-4c4d-8a39-8d0b3f7d2a11";
/// The user with a password.
pub const USER: &str = "root@pam";
/// The password.
pub const PASSWORD: &str = "emulated";
/// The nodes.
pub const NODES: [&str; 2] = ["pve1", "pve2"];

/// Makes something real of virtual machines.
pub trait Backing: Send + Sync {
    /// The machine was started; with what is on the volumes that it has as CDs, by slot.
    fn started(&self, vm: &Vm, volumes: &[(String, Vec<u8>)]);
    /// The machine was stopped.
    fn stopped(&self, vmid: u64);
    /// Whether a machine that was started still runs.
    fn is_running(&self, vmid: u64) -> bool;
}

/// How an emulator behaves.
#[derive(Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// Time that each request takes.
    pub latency: Duration,
    /// How long the cluster's list does not know a machine's name, state and size.
    pub report_lag: Duration,
    /// Time that a task takes, and what of it is under a lock.
    pub task: Duration,
    /// Time that a linked clone takes, under its storage's lock; a full one takes it once more, without.
    pub clone: Duration,
    /// How long a lock is waited for; 10 s at Proxmox VE.
    pub lock_wait: Duration,
    /// How long a clone waits for the locks of its template and its VMID; 1 s at Proxmox VE.
    pub clone_lock_wait: Duration,
    /// Rights that the token lacks.
    pub lacks: Vec<&'static str>,
    /// Most machines, for which there is room in its storages.
    pub room: usize,
    /// Makes something real of machines.
    pub backing: Option<Arc<dyn Backing>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            latency: Duration::ZERO,
            report_lag: Duration::ZERO,
            task: Duration::ZERO,
            clone: Duration::ZERO,
            lock_wait: Duration::from_secs(10),
            clone_lock_wait: Duration::from_secs(1),
            lacks: Vec::new(),
            room: 1000,
            backing: None,
        }
    }
}

pub(crate) struct Shared {
    pub options: Options,
    pub locks: locks::Locks,
    pub tasks: tasks::Tasks,
    pub requests: AtomicUsize,
    state: Mutex<State>,
    plans: Mutex<Plans>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running emulator; it ends with its runtime or when it is dropped.
pub struct Emulator {
    shared: Arc<Shared>,
    /// Address of its API, without `/api2/json`.
    pub url: String,
    /// SHA-256 of its certificate, as `pvenode cert info` shows it.
    pub fingerprint: String,
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
        let shared = Arc::new(Shared {
            locks: locks::Locks::default(),
            tasks: tasks::Tasks::default(),
            requests: AtomicUsize::new(0),
            state: Mutex::new(State::new()),
            plans: Mutex::default(),
            options,
        });
        let (listener, fingerprint) = tls::Listener::bind(shared.options.listen).await?;
        let url = format!("https://{}", axum::serve::Listener::local_addr(&listener)?);
        let router = api::router(shared.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { shared, url, fingerprint, server })
    }

    /// The next requests that it fits to meet this fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.plans().plan(fault);
    }

    /// Machines that were made of templates, and are there.
    pub fn machines(&self) -> Vec<Vm> {
        self.shared.state().machines().cloned().collect()
    }

    /// How many machines were ever made of templates.
    pub fn created(&self) -> usize {
        self.shared.state().created
    }

    /// Files of all storages that were uploaded, and are there: `storage:iso/name`.
    pub fn files(&self) -> Vec<String> {
        self.shared.state().files.keys().map(|(_, volume)| volume.clone()).collect()
    }

    /// The contents of a file that was uploaded.
    pub fn file(&self, volume: &str) -> Option<Vec<u8>> {
        let state = self.shared.state();
        state.files.iter().find(|((_, name), _)| name == volume).map(|(_, bytes)| bytes.clone())
    }

    /// How often somebody was refused for a lock.
    pub fn lock_errors(&self) -> usize {
        self.shared.locks.refused()
    }

    /// How many requests there were.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Locks a machine's configuration as a backup does, or lets go of it.
    pub fn lock(&self, vmid: u64, lock: Option<&str>) {
        if let Some(vm) = self.shared.state().vms.get_mut(&vmid) {
            vm.lock(lock);
        }
    }

    /// Holds a storage's lock until what is returned is dropped.
    pub async fn hold_storage(&self, storage: &str) -> impl Drop + Send + use<> {
        let forever = Duration::from_secs(3600);
        self.shared.locks.storage(storage, forever).await.expect("nobody holds it for so long")
    }

    /// Makes a machine as somebody else does who also asked for the next VMID, with that VMID.
    pub fn take_next_vmid(&self) -> u64 {
        let mut state = self.shared.state();
        let vmid = state.next_id().expect("there is room");
        state.vms.insert(vmid, Vm::foreign(vmid));
        vmid
    }

    /// Waits for the end, which comes with the runtime.
    pub async fn serve(mut self) {
        let _ = (&mut self.server).await;
    }
}
