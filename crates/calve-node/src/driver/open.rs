//! Opens drivers by name: the one table of them.

use std::path::PathBuf;
use std::sync::Arc;

use calve_core::DriverName;
use calve_store::Store;

use super::qemu::{QemuDriver, QemuOptions};
use super::sandbox::SandboxDriver;
use super::{Driver, DriverError, DriverErrorKind};

/// What drivers need to know of this host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Run directories are made under it.
    pub runtime_dir: PathBuf,
    /// Kernels, initrds and store images are kept here.
    pub images_dir: PathBuf,
    /// The static `calve-agent`.
    pub agent_binary: PathBuf,
    /// A kernel for guests whose closure brings none; the host's own otherwise.
    pub kernel: Option<PathBuf>,
    /// Makes the images of closures.
    pub store: Arc<Store>,
}

/// The driver of this name; whether the host can do what it needs is told by [`Driver::preflight`]. None for those that make
/// machines elsewhere.
pub fn open(name: DriverName, host: &Host) -> Option<Arc<dyn Driver>> {
    match name {
        DriverName::Sandbox => {
            Some(Arc::new(SandboxDriver::new(&host.runtime_dir, host.agent_binary.clone())))
        }
        DriverName::DigitalOcean | DriverName::Proxmox | DriverName::Ssh | DriverName::Exec => None,
        DriverName::Qemu => {
            let store = host.store.clone();
            Some(Arc::new(QemuDriver::new(QemuOptions {
                runtime_dir: host.runtime_dir.clone(),
                images_dir: host.images_dir.clone(),
                agent_binary: host.agent_binary.clone(),
                kernel: host.kernel.clone(),
                store_image: Arc::new(move |closure, dir| {
                    store.image(closure, dir).map_err(|error| {
                        let kind = if error.is_disk_full() {
                            DriverErrorKind::NoSpace
                        } else {
                            DriverErrorKind::Failed
                        };
                        let failed = DriverError::new(kind, "the closure's image cannot be made");
                        match error.hint() {
                            Some(hint) => failed.hint(hint).caused_by(error),
                            None => failed.caused_by(error),
                        }
                    })
                }),
            })))
        }
    }
}
