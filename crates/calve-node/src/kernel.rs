//! Kernels for guests: found in a system's closure or on the host, and made ready for QEMU once.
//!
//! ```text
//!  bzImage ──▶ vmlinux inside (PVH entry: 0.35 s less of boot in emulation) ──▶ images/kernel-<key>
//!                                                      what is known of it ──▶ images/kernel-<key>.json
//! ```
//! The key is the identity of the file (path, inode, size, time of change), not of its bytes: reading 14 MiB at every
//! creation would cost more than the rest of the creation.

mod closure_view;
mod host;
mod image;
mod modules;
mod system;

use std::io;
use std::path::{Path, PathBuf};

pub use closure_view::ClosureView;
pub use host::{KERNEL_VARIABLE, host_kernel};
pub use modules::{Modules, normal_name};
pub use system::{System, system};

use serde::{Deserialize, Serialize};

use crate::images;

/// A kernel that QEMU can start.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What QEMU is given: an ELF image with a PVH entry, or the bzImage as it was.
    pub boot: PathBuf,
    /// The file as its distribution made it, which boot loaders take.
    pub file: PathBuf,
    /// Tells this kernel from every other on this host.
    pub key: String,
    /// What is known of it.
    pub facts: Facts,
    /// Where its modules are; none where everything is built in.
    pub modules: Option<ModuleDir>,
}

/// Where a kernel's modules are.
#[derive(Debug, Clone)]
pub struct ModuleDir {
    /// The directory that holds `modules.dep`, as the system sees it: `/lib/modules/<version>` or inside the closure.
    pub path: PathBuf,
    /// How paths in it are found on this host.
    pub view: ClosureView,
}

/// What is known of a kernel; kept beside its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its release, e.g. `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// Whether it is started by its PVH entry.
    pub pvh: bool,
    /// How its virtio devices reach it.
    pub transport: Transport,
}

/// How a guest's virtio devices reach it, which decides about the machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// virtio-mmio, told by ACPI: `-M microvm,acpi=on`.
    MmioAcpi,
    /// virtio-mmio, told on the command line: `-M microvm,acpi=off`.
    MmioCommandLine,
    /// virtio over PCI: `-M q35`.
    Pci,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing usable on the host.
    #[error("no kernel for guests was found: {0}")]
    NotFound(String),
    /// A file cannot be read.
    #[error("the kernel file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no kernel, or one that cannot be used.
    #[error("{path} cannot be used as a kernel: {why}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A toplevel lacks something.
    #[error("the system lacks {what}")]
    NoSystem {
        /// What it lacks.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The images directory cannot be written.
    #[error("an image for guests cannot be written to {path}")]
    Images {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a kernel file ready: extracts what QEMU starts, once, and learns what is to know of it.
///
/// `config` is the text of its build configuration, where it lies beside it.
pub(crate) fn prepare(
    file: &Path,
    modules: Option<ModuleDir>,
    config: Option<&str>,
    images_dir: &Path,
) -> Result<Kernel, KernelError> {
    let unreadable = |source| KernelError::Unreadable { path: file.to_owned(), source };
    let mut id = images::identity(file).map_err(unreadable)?;
    if let Some(modules) = &modules {
        id.push_str(&modules.path.to_string_lossy());
    }
    let key = images::key(&[KERNEL_FORMAT, &id]);
    let boot = images_dir.join(format!("kernel-{key}"));
    let facts_path = images_dir.join(format!("kernel-{key}.json"));
    if let Some(facts) = std::fs::read(&facts_path).ok().and_then(|json| serde_json::from_slice(&json).ok())
        && boot.exists()
    {
        return Ok(Kernel { boot, file: file.to_owned(), key, facts, modules });
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let image = image::open(&bytes).map_err(|why| KernelError::Unfit { path: file.to_owned(), why })?;
    let index = match &modules {
        Some(dir) => {
            Modules::read(dir).map_err(|source| KernelError::Unreadable { path: dir.path.clone(), source })?
        }
        None => Modules::all_built_in(),
    };
    let facts =
        Facts { version: image.version.clone(), pvh: image.pvh, transport: transport(&index, config) };
    let written = |path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::Images { path, source }
    };
    images::write(&boot, &[&image.bytes]).map_err(written(&boot))?;
    let json = serde_json::to_vec(&facts).expect("plain data");
    images::write(&facts_path, &[&json]).map_err(written(&facts_path))?;
    Ok(Kernel { boot, file: file.to_owned(), key, facts, modules })
}

/// Changes when what is kept of a kernel changes.
const KERNEL_FORMAT: &str = "kernel 1";

fn transport(modules: &Modules, config: Option<&str>) -> Transport {
    let set =
        |option: &str| config.is_some_and(|text| text.lines().any(|line| line == format!("{option}=y")));
    if set("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES") {
        Transport::MmioCommandLine
    } else if modules.has("virtio_mmio") {
        Transport::MmioAcpi
    } else {
        Transport::Pci
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_type_follows_from_what_the_kernel_can_find_devices_by() {
        let none = Modules::parse("", "", "", "");
        let mmio = Modules::parse("kernel/virtio_mmio.ko.xz:\n", "", "", "");
        assert_eq!(transport(&none, None), Transport::Pci);
        assert_eq!(
            transport(&mmio, Some("# CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set\n")),
            Transport::MmioAcpi
        );
        let config = "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n";
        assert_eq!(transport(&Modules::all_built_in(), Some(config)), Transport::MmioCommandLine);
    }
}
