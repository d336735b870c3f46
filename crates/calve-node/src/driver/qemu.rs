//! Machines as QEMU guests.
//!
//! ```text
//!  create ─▶ kernel, initrd, store image (made once, kept) ─▶ run directory ─▶ calve-agent guard ─▶ QEMU ─▶ meta.json
//! ```
//! The guard is QEMU's parent and ends it with the lease, with the run directory, or with itself; the driver may die at
//! any moment. What a run directory holds besides `meta.json` is in [`calve_wire::guard`].

mod command;
mod emulator;
mod guard;
pub(crate) mod needs;
pub(crate) mod parameters;
mod preflight;
pub(crate) mod probe;
mod qmp;
pub(crate) mod tsc;
mod virtiofsd;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use calve_core::plan::Ended;
use calve_core::{DriverName, MachineId};
use calve_store::Closure;
use calve_wire::agent::Remaining;
use calve_wire::doctor::Check;
use calve_wire::guard::{CONSOLE_FILE, END_CAUSE_FILE, END_FILE, EndCause, LIVE_STORE_FILE};
use calve_wire::start::START_FILE;
use tokio::sync::OnceCell;

use crate::driver::{Driver, DriverError, DriverErrorKind, Found, Order};
use crate::kvm::{self, KvmState};
use crate::run_dir::{Meta, RunDirs};
use command::GuestPlan;
use emulator::Emulator;
use parameters::{Mode, Parameters};

/// Makes the one image of a closure in a directory, or answers with the one that is there: a read-only file system whose
/// root holds `<hash>-<name>` entries. May block.
pub type ImageMaker = Arc<dyn Fn(&Closure, &Path) -> Result<PathBuf, DriverError> + Send + Sync>;

/// What the driver works with.
#[derive(Clone)]
pub struct QemuOptions {
    /// Run directories are made under it.
    pub runtime_dir: PathBuf,
    /// Kernels, initrds and store images are kept here.
    pub images_dir: PathBuf,
    /// The static `calve-agent`: init of guests, and guard on the host.
    pub agent_binary: PathBuf,
    /// A kernel for guests whose closure brings none; the host's own otherwise.
    pub kernel: Option<PathBuf>,
    /// Makes store images.
    pub store_image: ImageMaker,
}

/// The driver; see [`Driver`].
pub struct QemuDriver {
    options: QemuOptions,
    dirs: RunDirs,
    emulator: OnceCell<Emulator>,
    kvm: OnceCell<KvmState>,
}

impl QemuDriver {
    /// A driver with these options; it looks at nothing yet.
    pub fn new(options: QemuOptions) -> Self {
        let dirs = RunDirs::new(&options.runtime_dir, DriverName::Qemu);
        Self { options, dirs, emulator: OnceCell::new(), kvm: OnceCell::new() }
    }

    /// QEMU on this host. One that is missing is looked for again the next time.
    async fn emulator(&self) -> Result<&Emulator, DriverError> {
        self.emulator.get_or_try_init(Emulator::find).await
    }

    /// Whether KVM runs guests here; found out once per boot of the host by starting one, which may take seconds.
    async fn kvm(&self, emulator: &Emulator) -> &KvmState {
        self.kvm.get_or_init(|| kvm::state(&self.options, emulator)).await
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> DriverName {
        DriverName::Qemu
    }

    async fn preflight(&self) -> Vec<Check> {
        preflight::preflight(self).await
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        if let Some(meta) = self.dirs.meta(order.id) {
            if meta.attempt == order.attempt {
                return Ok(());
            }
            if meta.attempt > order.attempt {
                let message =
                    format!("machine {} was made anew meanwhile (attempt {})", order.id, meta.attempt);
                return Err(DriverError::new(DriverErrorKind::Failed, message));
            }
        }
        self.destroy(order.id).await?;
        let emulator = self.emulator().await?;
        let kvm = self.kvm(emulator).await.is_usable();
        let plan = needs::gather(&self.options, emulator, kvm, order).await?;
        let started = self.start(order, &plan).await;
        if started.is_err() {
            // The reason is more use than why cleaning up failed as well; a list still shows what is left.
            let _ = self.destroy(order.id).await;
        }
        started
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let failed = |error| {
            DriverError::new(DriverErrorKind::Failed, "the run directories cannot be listed").caused_by(error)
        };
        let found = |id| Found { id, attempt: self.dirs.meta(id).map_or(0, |meta| meta.attempt) };
        Ok(self.dirs.list().map_err(failed)?.into_iter().map(found).collect())
    }

    async fn set_lease(&self, id: MachineId, remaining: Remaining) -> Result<(), DriverError> {
        guard::write_lease(&self.dirs.path(id), remaining).map_err(|error| {
            DriverError::new(DriverErrorKind::Failed, format!("the lease of {id} cannot be written"))
                .caused_by(error)
        })
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        guard::end(&self.dirs, id).await.map_err(|error| {
            DriverError::new(DriverErrorKind::Failed, format!("machine {id} cannot be destroyed"))
                .caused_by(error)
        })
    }

    fn agent_socket(&self, id: MachineId) -> PathBuf {
        self.dirs.path(id).join(command::AGENT_SOCKET)
    }

    fn console_log(&self, id: MachineId) -> Option<PathBuf> {
        Some(self.dirs.path(id).join(CONSOLE_FILE))
    }

    fn ended(&self, id: MachineId) -> Option<Ended> {
        let dir = self.dirs.path(id);
        let cause = std::fs::read(dir.join(END_CAUSE_FILE)).ok();
        match cause.and_then(|json| serde_json::from_slice(&json).ok()) {
            Some(EndCause::PoweredOff) => Some(Ended::ByItself),
            Some(
                EndCause::Panicked | EndCause::Killed { .. } | EndCause::Failed { .. } | EndCause::Guard,
            ) => Some(Ended::Killed),
            // The guard writes it down before it ends: it was killed, and QEMU with it.
            None => dir.exists().then_some(Ended::Killed),
        }
    }

    fn end_note(&self, id: MachineId) -> Option<String> {
        std::fs::read_to_string(self.dirs.path(id).join(END_FILE)).ok()
    }
}

impl QemuDriver {
    async fn start(&self, order: &Order, plan: &GuestPlan) -> Result<(), DriverError> {
        let failed = |error: io::Error| {
            DriverError::new(DriverErrorKind::Failed, "the run directory cannot be written").caused_by(error)
        };
        let dir = self.dirs.create(order.id).map_err(failed)?;
        guard::write_lease(&dir, order.remaining).map_err(failed)?;
        if let Some(store) = plan.live_store() {
            std::fs::write(dir.join(LIVE_STORE_FILE), serde_json::to_vec(store).expect("plain data"))
                .map_err(failed)?;
        }
        if let Some(start) = &plan.start {
            std::fs::write(dir.join(START_FILE), start).map_err(failed)?;
        }
        let guard = guard::Guard::start(&self.options.agent_binary, &dir, plan).await?;
        let process = guard.process().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        self.dirs.write_meta(order.id, Meta { attempt: order.attempt, process }).map_err(failed)?;
        guard.release().await.map_err(failed)
    }
}

/// A path for a Unix socket address: long ones are reached through their directory, which stays open with the answer.
fn socket_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    /// `sun_path` without its ending zero byte (`unix(7)`).
    const SOCKET_PATH_MAX_BYTES: usize = 107;
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX_BYTES {
        return Ok((path.to_owned(), None));
    }
    let (dir, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let dir = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name), Some(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_socket_paths_become_short_ones() {
        let dir = std::env::temp_dir().join("x".repeat(120) + &std::process::id().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let (path, open) = socket_path(&dir.join("s")).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(path.as_os_str().len() < 107 && open.is_some() && dir.join("s").exists());
        drop(listener);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
