//! From an order to everything that QEMU is given: decides sizes, and has kernel, initrd and store image made.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use calve_core::DriverName;
use calve_wire::machine::{Limits, Network, StoreDelivery, Workload};
use calve_wire::start;

use super::command::StoreSource;
use super::emulator::Emulator;
use super::parameters::StorePlace;
use super::virtiofsd::live_store;
use super::{GuestPlan, Mode, Parameters, QemuOptions, tsc};
use crate::driver::{DriverError, DriverErrorKind, Order};
use crate::initrd::{Contents, InitrdError, initrd, static_busybox};
use crate::kernel::{ClosureView, KERNEL_VARIABLE, Kernel, KernelError, Transport, host_kernel, system};
use crate::run_dir::RunDirs;

/// Memory of a guest for which none was said: a distribution's kernel takes 80 MiB of it.
const MEMORY_DEFAULT_MIB: u64 = 256;
/// Memory of a system for which none was said: a small NixOS needs half of it to boot.
const SYSTEM_MEMORY_DEFAULT_MIB: u64 = 1024;
/// Least memory: with less a distribution's kernel does not unpack its initrd.
const MEMORY_MIN_MIB: u64 = 128;
/// Processors of a guest for which none were said.
const CPUS_DEFAULT: u32 = 1;
/// Most processors: what every machine type here takes.
const CPUS_MAX: u32 = 255;

/// Everything that QEMU is given for this order.
pub(super) async fn gather(
    options: &QemuOptions,
    emulator: &Emulator,
    kvm: bool,
    order: &Order,
) -> Result<GuestPlan, DriverError> {
    let (options, emulator, order) = (options.clone(), emulator.clone(), order.clone());
    let gathering = tokio::task::spawn_blocking(move || gather_blocking(&options, &emulator, kvm, &order));
    gathering.await.map_err(|error| {
        DriverError::new(DriverErrorKind::Failed, "preparing the guest broke off").caused_by(error)
    })?
}

fn gather_blocking(
    options: &QemuOptions,
    emulator: &Emulator,
    kvm: bool,
    order: &Order,
) -> Result<GuestPlan, DriverError> {
    let images_dir = &options.images_dir;
    let size = Size::new(&order.spec.limits, matches!(order.spec.workload, Workload::System { .. }))?;
    let (kernel, system_initrd, mode) = match &order.spec.workload {
        Workload::System { toplevel } => {
            let system =
                system(toplevel, &ClosureView::new(&order.closure), images_dir).map_err(kernel_error)?;
            (
                system.kernel,
                Some(system.initrd),
                Mode::System { params: system.params, toplevel: system.toplevel },
            )
        }
        Workload::Adopted { .. } => {
            let message = "a machine that is there already is not made";
            return Err(DriverError::new(DriverErrorKind::Unusable, message));
        }
        Workload::Program(_) | Workload::Base => (kernel_for_guests(options)?, None, Mode::Bare),
    };
    let (store, place) = store(options, order)?.unzip();
    let network = order.spec.network == Network::Host;
    let random_device = kvm && !host_has_random_instruction();
    let busybox = if order.spec.workload == Workload::Base { static_busybox() } else { None };
    let devices = Devices { store: place, overlay: system_initrd.is_some(), network, random_device };
    let initrd = initrd_for(options, &kernel, &devices, busybox.as_deref(), system_initrd.as_deref())?;
    let start = match &order.spec.workload {
        Workload::Program(program) => start::encode(program, order.spec.restart, order.spec.health.as_ref()),
        Workload::System { .. } | Workload::Base | Workload::Adopted { .. } => None,
    };
    let parameters = Parameters {
        mode,
        token: order.token.clone(),
        hostname: order.name.to_string(),
        remaining: order.remaining,
        network,
        store: place,
        pids: order.spec.limits.pids,
        start: start.is_some(),
        unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
        emulated_tsc_khz: (!kvm).then(|| tsc::host_khz(images_dir)),
    };
    let kernel_parameters =
        parameters.line().map_err(|message| DriverError::new(DriverErrorKind::Unusable, message))?;
    Ok(GuestPlan {
        qemu: emulator.path.clone(),
        kvm,
        transport: kernel.facts.transport,
        qboot: emulator.qboot && kernel.facts.pvh,
        cpus: size.cpus,
        memory_mib: size.memory_mib,
        kernel: kernel.boot,
        initrd,
        kernel_parameters,
        store,
        cpus_milli: order.spec.limits.cpus_milli,
        network,
        random_device,
        start,
    })
}

/// How the order's closure gets into the guest; none where it is empty.
fn store(options: &QemuOptions, order: &Order) -> Result<Option<(StoreSource, StorePlace)>, DriverError> {
    if order.closure.paths.is_empty() {
        return Ok(None);
    }
    match order.spec.store.unwrap_or(StoreDelivery::Image) {
        StoreDelivery::Image => {
            let image = (options.store_image)(&order.closure, &options.images_dir)?;
            Ok(Some((StoreSource::Image(image), StorePlace::Image)))
        }
        // Its paths lie on a mount of the host.
        StoreDelivery::Live | StoreDelivery::Lazy => {
            let dirs = RunDirs::new(&options.runtime_dir, DriverName::Qemu);
            let live = live_store(&order.closure, &dirs.path(order.id))?;
            Ok(Some((StoreSource::Live(live), StorePlace::Live)))
        }
    }
}

/// The kernel for guests whose closure brings none.
pub(crate) fn kernel_for_guests(options: &QemuOptions) -> Result<Kernel, DriverError> {
    host_kernel(options.kernel.as_deref(), &options.images_dir).map_err(kernel_error)
}

/// What the guest has to drive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Devices {
    /// The closure.
    pub store: Option<StorePlace>,
    /// A file system over the image that can be written.
    pub overlay: bool,
    /// A network card.
    pub network: bool,
    /// A random generator.
    pub random_device: bool,
}

impl Devices {
    /// Fewer modules are a faster boot.
    fn modules(&self, transport: Transport) -> Vec<&'static str> {
        let bus = if transport == Transport::Pci { "virtio_pci" } else { "virtio_mmio" };
        let mut modules = vec![bus, "virtio_console"];
        let optional = [
            (self.store == Some(StorePlace::Image), &["virtio_blk", "erofs"][..]),
            (self.store == Some(StorePlace::Live), &["virtiofs"]),
            (self.overlay, &["overlay"]),
            (self.network, &["virtio_net"]),
            (self.random_device, &["virtio_rng"]),
        ];
        for (_, wanted) in optional.into_iter().filter(|(needed, _)| *needed) {
            modules.extend(wanted);
        }
        modules
    }
}

/// The initrd for a guest with these devices.
pub(crate) fn initrd_for(
    options: &QemuOptions,
    kernel: &Kernel,
    devices: &Devices,
    busybox: Option<&Path>,
    system: Option<&Path>,
) -> Result<PathBuf, DriverError> {
    let modules = devices.modules(kernel.facts.transport);
    let contents = Contents { kernel, modules: &modules, agent: &options.agent_binary, busybox, system };
    initrd(&contents, &options.images_dir).map_err(initrd_error)
}

struct Size {
    cpus: u32,
    memory_mib: u64,
}

impl Size {
    fn new(limits: &Limits, is_system: bool) -> Result<Self, DriverError> {
        let unusable = |message: String| DriverError::new(DriverErrorKind::Unusable, message);
        let default = if is_system { SYSTEM_MEMORY_DEFAULT_MIB } else { MEMORY_DEFAULT_MIB };
        let memory_mib = limits.memory_bytes.map_or(default, |bytes| bytes.div_ceil(1024 * 1024));
        if memory_mib < MEMORY_MIN_MIB {
            return Err(unusable(format!(
                "a guest needs at least {MEMORY_MIN_MIB} MiB of memory, not {memory_mib}"
            ))
            .hint(format!("say --memory {MEMORY_MIN_MIB}M or more, or --driver sandbox")));
        }
        let cpus = limits.cpus_milli.map_or(CPUS_DEFAULT, |milli| milli.div_ceil(1000).max(1));
        if cpus > CPUS_MAX {
            return Err(unusable(format!("a guest has at most {CPUS_MAX} processors, not {cpus}")));
        }
        Ok(Self { cpus, memory_mib })
    }
}

fn host_has_random_instruction() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" rdrand"))
}

pub(crate) fn kernel_error(error: KernelError) -> DriverError {
    let hint = match &error {
        KernelError::NotFound(_) | KernelError::Unreadable { .. } | KernelError::Unfit { .. } => {
            Some(format!(
                "install one (`apt-get install linux-image-cloud-amd64` on Debian, `linux-image-kvm` on Ubuntu), make it \
             readable (`chmod a+r /boot/vmlinuz-*`), or name one with {KERNEL_VARIABLE}"
            ))
        }
        KernelError::NoSystem { .. } => Some("is it a system's toplevel, with its whole closure?".to_owned()),
        KernelError::Images { .. } => None,
    };
    with_sources(DriverErrorKind::Unusable, error, hint)
}

pub(crate) fn initrd_error(error: InitrdError) -> DriverError {
    let hint = match &error {
        InitrdError::NoModule { .. } => Some(format!("name a kernel that has it with {KERNEL_VARIABLE}")),
        InitrdError::NotStatic(_) => {
            Some("use the calve-agent that was built with calve, which is static".to_owned())
        }
        InitrdError::Unreadable { .. } | InitrdError::Unwritable { .. } => None,
    };
    with_sources(DriverErrorKind::Unusable, error, hint)
}

/// Keeps the error's own source as the source, so that a full disk is seen as one.
fn with_sources<E: std::error::Error + Send + Sync + 'static>(
    kind: DriverErrorKind,
    error: E,
    hint: Option<String>,
) -> DriverError {
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    let source = source.map(|source| match source.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(source.kind(), source.to_string()),
    });
    let mut driver_error = DriverError::new(kind, error.to_string());
    if let Some(source) = source {
        driver_error = driver_error.caused_by(source);
    }
    match hint {
        Some(hint) => driver_error.hint(hint),
        None => driver_error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_too_small_ones_refused() {
        let limits = |cpus_milli, memory_bytes| Limits { cpus_milli, memory_bytes, pids: None };
        let size = Size::new(&limits(Some(1500), Some(300 * 1024 * 1024 + 1)), false).unwrap();
        assert_eq!((size.cpus, size.memory_mib), (2, 301));
        let size = Size::new(&limits(None, None), true).unwrap();
        assert_eq!((size.cpus, size.memory_mib), (1, SYSTEM_MEMORY_DEFAULT_MIB));
        let error = Size::new(&limits(None, Some(1)), false).err().expect("too small");
        assert!(error.hint.is_some() && error.kind == DriverErrorKind::Unusable);
        assert!(Size::new(&limits(Some(1_000_000), None), false).is_err());
    }

    #[test]
    fn a_guest_loads_what_it_drives_and_no_more() {
        assert_eq!(Devices::default().modules(Transport::MmioAcpi), ["virtio_mmio", "virtio_console"]);
        let all =
            Devices { store: Some(StorePlace::Image), overlay: true, network: true, random_device: true };
        assert_eq!(all.modules(Transport::Pci).len(), 7);
    }

    #[test]
    fn a_full_disk_is_told_as_one() {
        let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let error = initrd_error(InitrdError::Unwritable { path: "/x".into(), source });
        assert_eq!(error.kind, DriverErrorKind::NoSpace);
    }
}
