//! Makes the machines of emulated providers real: each is a QEMU guest that boots the cloud image and finds its user data where
//! a machine of that provider finds it. Behind the guest's network card lies the user network of QEMU, laid over the link-local
//! addresses:
//!
//! ```text
//!  guest 169.254.0.16 ──┬─ 169.254.169.254:80   metadata of this droplet (DigitalOcean)
//!                       ├─ 169.254.2.2          this host's loopback, and what it reaches
//!                       └─ CD drives            volumes of this machine (Proxmox VE)
//! ```

mod digitalocean;
mod proxmox;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calve_node::cloud_image::{CloudImage, cloud_image, emulation_parameters};
use calve_node::initrd::static_busybox;
use calve_node::kernel::Transport;
use e2e::emulator;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// By this a guest reaches what listens on this host's loopback.
pub const HOST_FROM_GUEST: &str = "169.254.2.2";
/// Memory of a guest whatever its droplet was sold with: many run on one host.
const MEMORY_MIB: u64 = 256;

/// Memory of one with a full system.
const SYSTEM_MEMORY_MIB: u64 = 768;

/// A disk with a full system, in which the agent is a service, and what starts it.
pub struct SystemDisk {
    /// Stays as it is, whatever guests write.
    pub disk: PathBuf,
    /// The system's kernel.
    pub kernel: PathBuf,
    /// What finds the disk.
    pub initrd: PathBuf,
}

/// The guests of an emulator.
pub struct Guests {
    image: CloudImage,
    /// What guests boot in place of the image.
    system: Option<SystemDisk>,
    /// Words for a kernel in emulation.
    emulated: String,
    dir: PathBuf,
    runtime: Handle,
    guests: Mutex<BTreeMap<u64, Guest>>,
}

/// Ended when it is dropped.
struct Guest {
    qemu: Child,
    metadata: Option<JoinHandle<()>>,
}

/// Where a guest finds its user data.
enum Source {
    /// A metadata service that listens on this port of the host's loopback.
    Metadata { port: u16, serving: JoinHandle<()> },
    /// Volumes in CD drives: files.
    Volumes(Vec<PathBuf>),
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(metadata) = &self.metadata {
            metadata.abort();
        }
    }
}

impl Guests {
    /// Guests with this agent; consoles are kept in `dir`, images in `images_dir`. To be called within a tokio runtime.
    pub fn new(agent: &Path, dir: &Path, images_dir: &Path) -> anyhow::Result<Arc<Self>> {
        Self::with(agent, dir, images_dir, None)
    }

    /// Guests that boot this system, where there is one.
    pub fn with(
        agent: &Path,
        dir: &Path,
        images_dir: &Path,
        system: Option<SystemDisk>,
    ) -> anyhow::Result<Arc<Self>> {
        std::fs::create_dir_all(images_dir)?;
        let kernel = std::env::var_os("CALVE_KERNEL").map(PathBuf::from);
        let image = cloud_image(kernel.as_deref(), agent, static_busybox().as_deref(), images_dir)?;
        Ok(Arc::new(Self {
            image,
            system,
            emulated: emulation_parameters(images_dir),
            dir: dir.to_owned(),
            runtime: Handle::current(),
            guests: Mutex::default(),
        }))
    }

    /// Whether the droplet is there and its guest has not ended.
    pub fn is_running(&self, id: u64) -> bool {
        self.guests().get_mut(&id).is_some_and(|guest| matches!(guest.qemu.try_wait(), Ok(None)))
    }

    /// What the guest has said on its console.
    pub fn console(&self, id: u64) -> String {
        String::from_utf8_lossy(&std::fs::read(self.console_file(id)).unwrap_or_default()).into_owned()
    }

    fn console_file(&self, id: u64) -> PathBuf {
        self.dir.join(format!("console-{id}"))
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<u64, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, id: u64, source: Source) {
        let spawned = self.qemu(id, &source).spawn();
        let qemu = spawned.unwrap_or_else(|error| panic!("qemu-system-x86_64 cannot be started: {error}"));
        let metadata = match source {
            Source::Metadata { serving, .. } => Some(serving),
            Source::Volumes(_) => None,
        };
        self.guests().insert(id, Guest { qemu, metadata });
    }

    fn end(&self, id: u64) {
        let guest = self.guests().remove(&id);
        drop(guest);
    }

    fn qemu(&self, id: u64, source: &Source) -> Command {
        let (machine, bus) = match self.image.kernel.facts.transport {
            _ if self.system.is_some() => ("q35,usb=off,smbus=off,sata=off", "pci"),
            Transport::MmioAcpi => ("microvm,acpi=on,pcie=off,usb=off", "device"),
            Transport::MmioCommandLine => ("microvm,acpi=off", "device"),
            Transport::Pci => ("q35,usb=off,smbus=off,sata=off", "pci"),
        };
        let memory = if self.system.is_some() { SYSTEM_MEMORY_MIB } else { MEMORY_MIB };
        let mut command = emulator(machine, memory, &self.console_file(id));
        command.arg("-no-reboot");
        if bus == "device" {
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
        }
        let (kernel, initrd, parameters) = match &self.system {
            None => {
                let parameters = format!("quiet {} {}", self.image.parameters, self.emulated);
                (&self.image.kernel.boot, &self.image.initrd, parameters)
            }
            Some(SystemDisk { disk, kernel, initrd }) => {
                let drive = "if=none,id=disk,format=raw,snapshot=on,cache=unsafe,file=";
                command.args(["-drive", &format!("{drive}{}", disk.display())]);
                command.args(["-device", "virtio-blk-pci,drive=disk"]);
                let parameters = format!("console=ttyS0 systemd.show_status=0 {}", self.emulated);
                (kernel, initrd, parameters)
            }
        };
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", &parameters]);
        let mut network = "user,id=net,net=169.254.0.0/16".to_owned();
        match source {
            // One process a connection: QEMU's own forwarding would make a single connection for all of them.
            Source::Metadata { port, .. } => {
                network =
                    format!("{network},guestfwd=tcp:169.254.169.254:80-cmd:busybox nc 127.0.0.1 {port}");
            }
            Source::Volumes(files) => {
                command.args(["-device", &format!("virtio-scsi-{bus},id=scsi")]);
                for (n, file) in files.iter().enumerate() {
                    let drive = format!("if=none,id=cd{n},format=raw,readonly=on,file={}", file.display());
                    command.args(["-drive", &drive, "-device", &format!("scsi-cd,bus=scsi.0,drive=cd{n}")]);
                }
            }
        }
        command.args(["-netdev", &network, "-device", &format!("virtio-net-{bus},netdev=net")]);
        command
    }
}
