//! What machines at providers boot: a kernel, and the agent as its init, which reads the rest from the provider's metadata.

use std::path::{Path, PathBuf};

use calve_wire::guard::CLOUD_PARAMETER;

use crate::driver::DriverError;
use crate::driver::qemu::needs::{initrd_error, kernel_error};
use crate::driver::qemu::{parameters, tsc};
use crate::initrd::{Contents, initrd};
use crate::kernel::{Kernel, Modules, Transport, host_kernel};

/// A console for people who look at a machine that does not come up, and an end instead of a halt upon a panic.
const ALWAYS: &str = "console=ttyS0 panic=-1 reboot=t";

/// Where a kernel has them as modules: the other bus, and what volumes with user data need, as virtual disks and as discs of
/// virtio, SCSI and IDE, with ISO 9660 or FAT and the character sets that FAT asks for.
const VOLUMES: [&str; 11] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "ata_piix",
    "sd_mod",
    "sr_mod",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
];

/// Everything that is the same for every machine at every provider.
#[derive(Debug, Clone)]
pub struct CloudImage {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial ramdisk: the agent, modules, and nothing else.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub parameters: String,
}

/// The image with this host's kernel or `kernel`, and this agent; kept in `images_dir`. A static `busybox` gives it a shell.
pub fn cloud_image(
    kernel: Option<&Path>,
    agent: &Path,
    busybox: Option<&Path>,
    images_dir: &Path,
) -> Result<CloudImage, DriverError> {
    let kernel = host_kernel(kernel, images_dir).map_err(kernel_error)?;
    let bus = if kernel.facts.transport == Transport::Pci { "virtio_pci" } else { "virtio_mmio" };
    let mut modules = vec![bus, "virtio_net"];
    if let Some(dir) = &kernel.modules {
        let index = Modules::read(dir).map_err(|source| {
            initrd_error(crate::initrd::InitrdError::Unreadable { path: dir.path.clone(), source })
        })?;
        modules.extend(VOLUMES.into_iter().filter(|module| index.has(module)));
    }
    let contents = Contents { kernel: &kernel, modules: &modules, agent, busybox, system: None };
    let initrd = initrd(&contents, images_dir).map_err(initrd_error)?;
    Ok(CloudImage { kernel, initrd, parameters: format!("{CLOUD_PARAMETER} {ALWAYS} rdinit=/calve-agent") })
}

/// Words for the command line of a kernel that this host emulates; measured once per boot and kept in `images_dir`.
pub fn emulation_parameters(images_dir: &Path) -> String {
    parameters::emulated(tsc::host_khz(images_dir))
}
