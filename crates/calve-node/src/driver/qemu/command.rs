//! QEMU's command line for one machine: a pure function of what was decided.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use calve_wire::guard::{GUARD_SOCKET, LIVE_STORE_SOCKET, LiveStore};
use calve_wire::start::{START_FILE, START_ITEM};

use crate::kernel::Transport;

/// Ports of the virtio-serial device: the agent's, and the first one, which QEMU keeps for a console. The guest sets up
/// two queues for each that could be, and QEMU's default is 31.
const SERIAL_PORTS: u32 = 2;
/// What the guest mounts a live store by.
pub(crate) const STORE_TAG: &str = "store";
/// Name of the virtio-serial port between server and agent.
pub(crate) const AGENT_PORT: &str = "calve.agent";
/// Sockets and files in the run directory, which is QEMU's working directory: paths stay short.
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
/// Where QEMU is controlled.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";

/// The processor that emulation shows: the x86-64-v2 level and a random generator. `max` costs 0.2 s more of boot (more
/// of the kernel is patched) and its AVX code runs slower in emulation than the SSE code that programs choose without.
const EMULATED_CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand";
/// Needed for virtio-mmio: without it QEMU offers the legacy layout, which vhost-user devices refuse.
const MODERN_MMIO: &str = "virtio-mmio.force-legacy=false";

/// How a closure gets into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreSource {
    /// As this image, seen as `/dev/vda`.
    Image(PathBuf),
    /// Live, from a daemon that the guard starts so.
    Live(LiveStore),
}

/// Everything that QEMU's command line depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestPlan {
    /// The program.
    pub qemu: PathBuf,
    /// Whether the host's processor runs the guest; emulation otherwise.
    pub kvm: bool,
    /// How devices reach the guest.
    pub transport: Transport,
    /// The small firmware, where QEMU has it: starts a PVH kernel 50 ms sooner than SeaBIOS.
    pub qboot: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub kernel_parameters: String,
    /// How the closure gets in.
    pub store: Option<StoreSource>,
    /// Time of the host's processors that QEMU may use, in thousandths of one.
    pub cpus_milli: Option<u32>,
    /// Whether the guest reaches out through the host.
    pub network: bool,
    /// Whether the processor that the guest sees has no random generator.
    pub random_device: bool,
    /// The order to start its program, which the guest finds in its machine.
    pub start: Option<Vec<u8>>,
}

impl GuestPlan {
    /// The program and its arguments.
    pub(crate) fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv(vec![self.qemu.clone().into()]);
        argv.pair("-name", "calve,process=calve-guest,debug-threads=off");
        argv.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        argv.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        argv.pair("-display", "none");
        argv.pair("-machine", self.machine());
        if self.qboot && self.transport != Transport::Pci {
            argv.pair("-bios", "qboot.rom");
        }
        argv.pair("-cpu", if self.kvm { "host" } else { EMULATED_CPU });
        argv.pair("-smp", self.cpus.to_string());
        argv.pair("-m", format!("{}M", self.memory_mib));
        if self.live_store().is_some() {
            // The daemon reads and writes the guest's memory itself.
            argv.pair(
                "-object",
                format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib),
            );
        }
        argv.pair("-kernel", &self.kernel);
        argv.pair("-initrd", &self.initrd);
        argv.pair("-append", &self.kernel_parameters);
        if self.start.is_some() {
            // A file, as arguments can be read by everybody on the host.
            argv.pair("-fw_cfg", format!("name={START_ITEM},file={START_FILE}"));
        }
        self.channels(&mut argv);
        self.devices(&mut argv);
        argv.0
    }

    fn machine(&self) -> String {
        let accelerator = if self.kvm { "kvm" } else { "tcg" };
        let memory = if self.live_store().is_some() { ",memory-backend=memory" } else { "" };
        match self.transport {
            Transport::MmioAcpi => format!("microvm,acpi=on,pcie=off,usb=off,accel={accelerator}{memory}"),
            Transport::MmioCommandLine => format!("microvm,acpi=off,accel={accelerator}{memory}"),
            Transport::Pci => format!("q35,usb=off,smbus=off,sata=off,accel={accelerator}{memory}"),
        }
    }

    /// What the guard's daemon serves.
    pub(crate) fn live_store(&self) -> Option<&LiveStore> {
        match &self.store {
            Some(StoreSource::Live(live)) => Some(live),
            Some(StoreSource::Image(_)) | None => None,
        }
    }

    /// The console on standard output, which the guard reads; the agent's and QEMU's own sockets.
    fn channels(&self, argv: &mut Argv) {
        argv.pair("-chardev", "stdio,id=console,signal=off");
        argv.pair("-serial", "chardev:console");
        argv.pair("-chardev", format!("socket,id=qmp,path={QMP_SOCKET},server=on,wait=off"));
        argv.pair("-mon", "chardev=qmp,mode=control");
        argv.pair("-chardev", format!("socket,id=guard,path={GUARD_SOCKET},server=on,wait=off"));
        argv.pair("-mon", "chardev=guard,mode=control");
        argv.device(self.virtio("serial", &format!(",id=ports,max_ports={SERIAL_PORTS}")));
        argv.pair("-chardev", format!("socket,id=agent,path={AGENT_SOCKET},server=on,wait=off"));
        argv.device(format!("virtserialport,bus=ports.0,chardev=agent,name={AGENT_PORT}"));
    }

    fn devices(&self, argv: &mut Argv) {
        if self.transport != Transport::Pci {
            argv.pair("-global", MODERN_MMIO);
        }
        match &self.store {
            Some(StoreSource::Image(image)) => {
                let mut drive =
                    OsString::from("if=none,id=store,format=raw,readonly=on,file.locking=off,file=");
                drive.push(escaped(image));
                argv.pair("-drive", drive);
                argv.device(self.virtio("blk", ",drive=store"));
            }
            Some(StoreSource::Live(_)) => {
                argv.pair("-chardev", format!("socket,id=store,path={LIVE_STORE_SOCKET}"));
                let bus = if self.transport == Transport::Pci { "pci" } else { "device" };
                argv.device(format!("vhost-user-fs-{bus},chardev=store,tag={STORE_TAG}"));
            }
            None => {}
        }
        if self.network {
            argv.pair("-netdev", "user,id=net");
            argv.device(self.virtio("net", ",netdev=net"));
        }
        if self.random_device {
            argv.pair("-object", "rng-random,id=random,filename=/dev/urandom");
            argv.device(self.virtio("rng", ",rng=random"));
        }
    }

    fn virtio(&self, kind: &str, options: &str) -> String {
        let bus = if self.transport == Transport::Pci { "pci" } else { "device" };
        format!("virtio-{kind}-{bus}{options}")
    }
}

struct Argv(Vec<OsString>);

impl Argv {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    fn device(&mut self, device: String) {
        self.pair("-device", device);
    }
}

/// A comma in a value of a QEMU option is written twice.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let double = |byte: &u8| if *byte == b',' { vec![b',', b','] } else { vec![*byte] };
    OsString::from_vec(path.as_os_str().as_bytes().iter().flat_map(double).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> GuestPlan {
        GuestPlan {
            qemu: "/bin/qemu".into(),
            kvm: false,
            transport: Transport::MmioAcpi,
            qboot: true,
            cpus: 1,
            memory_mib: 256,
            kernel: "/k".into(),
            initrd: "/i".into(),
            kernel_parameters: "quiet a,b".into(),
            store: None,
            cpus_milli: None,
            network: false,
            random_device: false,
            start: None,
        }
    }

    fn line(plan: &GuestPlan) -> String {
        plan.argv().iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_bare_guest_has_a_console_two_sockets_and_nothing_else() {
        let line = line(&plan());
        for part in [
            "-machine microvm,acpi=on,pcie=off,usb=off,accel=tcg -bios qboot.rom",
            "-smp 1 -m 256M -kernel /k -initrd /i -append quiet a,b",
            "id=ports,max_ports=2 ",
            "-device virtserialport,bus=ports.0,chardev=agent,name=calve.agent",
            "-global virtio-mmio.force-legacy=false",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        for part in ["-drive", "-netdev", "virtio-rng"] {
            assert!(!line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn a_live_store_shares_the_memory_with_its_daemon() {
        let live = LiveStore { argv: vec![], paths: vec![] };
        let mmio = GuestPlan { store: Some(StoreSource::Live(live)), ..plan() };
        for (plan, device) in [
            (mmio.clone(), "-device vhost-user-fs-device,chardev=store,tag=store"),
            (
                GuestPlan { transport: Transport::Pci, ..mmio },
                "-device vhost-user-fs-pci,chardev=store,tag=store",
            ),
        ] {
            let line = line(&plan);
            for part in [
                ",memory-backend=memory ",
                "-object memory-backend-memfd,id=memory,size=256M,share=on",
                device,
            ] {
                assert!(line.contains(part), "{part} in {line}");
            }
        }
    }

    #[test]
    fn each_need_adds_its_device_on_the_bus_of_the_machine() {
        let plan = GuestPlan {
            transport: Transport::Pci,
            kvm: true,
            store: Some(StoreSource::Image("/a,b".into())),
            network: true,
            random_device: true,
            start: Some(vec![]),
            ..plan()
        };
        let line = line(&plan);
        for part in [
            "file=/a,,b",
            "virtio-blk-pci,drive=store",
            "virtio-net-pci",
            "virtio-rng-pci",
            "-fw_cfg name=opt/calve/start,file=start",
            "accel=kvm",
            "-cpu host",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("-bios") && !line.contains("mmio"));
    }
}
