//! Makes the emulator's droplets real: each is a QEMU guest that boots the cloud image and finds the metadata service where
//! a droplet finds it. Behind the guest's network card lies the user network of QEMU, laid over the link-local addresses:
//!
//! ```text
//!  guest 169.254.0.16 ──┬─ 169.254.169.254:80   metadata of this droplet
//!                       └─ 169.254.2.2          this host's loopback, and what it reaches
//! ```

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use calve_node::cloud_image::{CloudImage, cloud_image, emulation_parameters};
use calve_node::initrd::static_busybox;
use calve_node::kernel::Transport;
use digitalocean_emulator::{Backing, Droplet};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// By this a guest reaches what listens on this host's loopback.
pub const HOST_FROM_GUEST: &str = "169.254.2.2";
/// The processor that emulation shows; see the driver for guests of this host.
const EMULATED_CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand";
/// Memory of a guest whatever its droplet was sold with: many run on one host.
const MEMORY_MIB: u64 = 256;

/// The guests of an emulator.
pub struct Guests {
    image: CloudImage,
    /// Words for a kernel in emulation.
    emulated: String,
    dir: PathBuf,
    runtime: Handle,
    guests: Mutex<BTreeMap<u64, Guest>>,
}

/// Ended when it is dropped.
struct Guest {
    qemu: Child,
    metadata: JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        self.metadata.abort();
    }
}

impl Guests {
    /// Guests with this agent; consoles are kept in `dir`, images in `images_dir`. To be called within a tokio runtime.
    pub fn new(agent: &Path, dir: &Path, images_dir: &Path) -> anyhow::Result<Arc<Self>> {
        std::fs::create_dir_all(images_dir)?;
        let kernel = std::env::var_os("CALVE_KERNEL").map(PathBuf::from);
        let image = cloud_image(kernel.as_deref(), agent, static_busybox().as_deref(), images_dir)?;
        Ok(Arc::new(Self {
            image,
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

    fn start(&self, droplet: &Droplet) -> anyhow::Result<Guest> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let router = metadata(droplet);
        let serving = self.runtime.spawn(async move {
            if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                let _ = axum::serve(listener, router).await;
            }
        });
        let qemu = self.qemu(droplet.id, port).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let qemu = qemu.context("qemu-system-x86_64 cannot be started")?;
        Ok(Guest { qemu, metadata: serving })
    }

    fn qemu(&self, id: u64, metadata_port: u16) -> Command {
        // Also a test that is killed leaves none behind.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]);
        let (machine, card) = match self.image.kernel.facts.transport {
            Transport::MmioAcpi => ("microvm,acpi=on,pcie=off,usb=off", "virtio-net-device"),
            Transport::MmioCommandLine => ("microvm,acpi=off", "virtio-net-device"),
            Transport::Pci => ("q35,usb=off,smbus=off,sata=off", "virtio-net-pci"),
        };
        command.args(["-display", "none", "-machine", &format!("{machine},accel=tcg"), "-cpu", EMULATED_CPU]);
        if self.image.kernel.facts.transport != Transport::Pci {
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
        }
        command.args(["-smp", "1", "-m", &format!("{MEMORY_MIB}M")]);
        command.arg("-kernel").arg(&self.image.kernel.boot).arg("-initrd").arg(&self.image.initrd);
        command.args(["-append", &format!("quiet {} {}", self.image.parameters, self.emulated)]);
        command.args(["-serial", &format!("file:{}", self.console_file(id).display())]);
        // One process a connection: QEMU's own forwarding would make a single connection for all of them.
        let forward = format!("tcp:169.254.169.254:80-cmd:busybox nc 127.0.0.1 {metadata_port}");
        command.args(["-netdev", &format!("user,id=net,net=169.254.0.0/16,guestfwd={forward}")]);
        command.args(["-device", &format!("{card},netdev=net")]);
        command
    }
}

impl Backing for Guests {
    fn created(&self, droplet: &Droplet) {
        let guest = self.start(droplet).unwrap_or_else(|error| panic!("droplet {}: {error:#}", droplet.id));
        self.guests().insert(droplet.id, guest);
    }

    fn destroyed(&self, id: u64) {
        let guest = self.guests().remove(&id);
        drop(guest);
    }
}

/// What the metadata service says to one droplet.
fn metadata(droplet: &Droplet) -> Router {
    let document = json!({
        "droplet_id": droplet.id, "hostname": droplet.name, "region": droplet.region, "user_data": droplet.user_data,
        "public_keys": [], "tags": [], "features": {}, "dns": {"nameservers": ["169.254.2.3"]},
        "interfaces": {"public": [{"type": "public", "mac": "52:54:00:12:34:56", "ipv4": {
            "ip_address": "169.254.0.16", "netmask": "255.255.0.0", "gateway": HOST_FROM_GUEST,
        }}]},
    })
    .to_string();
    let (id, user_data) = (droplet.id.to_string(), droplet.user_data.clone());
    Router::new()
        .route("/metadata/v1.json", get(async move || document))
        .route("/metadata/v1/id", get(async move || id))
        .route("/metadata/v1/user-data", get(async move || user_data))
}
