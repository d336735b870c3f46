//! A host with a driver on it: directories of its own, the agent's binary, store images.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_client::agent_program;
pub use agent_client::{HOUR, TOKEN};
use calve_core::{DriverName, Kind, MachineId, Timestamp};
use calve_nix::StorePath;
use calve_node::driver::qemu::{ImageMaker, QemuDriver, QemuOptions};
use calve_node::kernel::KERNEL_VARIABLE;
use calve_node::run_dir::{Process, RunDirs};
use calve_node::{DriverError, DriverErrorKind, Order};
use calve_store::{Closure, ClosurePath};
use calve_wire::agent::{Remaining, SandboxCgroups};
use calve_wire::guard::GuardProcesses;
use calve_wire::machine::{MachineSpec, Program, Workload};

/// Longest wait for anything: a guest boots in two seconds, on a crowded host in twenty.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Base name of the store path that holds the host's static busybox.
pub const BUSYBOX: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-busybox";

/// A run directory's parent that is removed in the end, with what is still alive in it.
pub struct Host {
    pub dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join(BUSYBOX).join("bin");
        std::fs::create_dir_all(&bin).expect("made");
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        Self { dir }
    }

    pub fn driver(&self) -> QemuDriver {
        let dir = self.dir.path().to_owned();
        self.driver_with(Arc::new(move |closure, _| store_image(closure, &dir)))
    }

    /// A driver that cannot make an image.
    pub fn driver_without_images(&self) -> QemuDriver {
        self.driver_with(Arc::new(|_, _| panic!("an image is made")))
    }

    fn driver_with(&self, store_image: ImageMaker) -> QemuDriver {
        QemuDriver::new(QemuOptions {
            runtime_dir: self.dir.path().join("run"),
            images_dir: images_dir(),
            agent_binary: agent_program(),
            kernel: chosen_kernel(),
            store_image,
        })
    }

    /// An order for a guest with busybox in its closure.
    pub fn order(&self, n: u128, remaining: Remaining) -> Order {
        Order {
            id: MachineId::new(Timestamp(1), n),
            name: "guest-1".parse().expect("a name"),
            attempt: 1,
            token: TOKEN.into(),
            spec: MachineSpec {
                driver: Some(DriverName::Qemu),
                ..MachineSpec::new(Kind::Job, Workload::Program(busybox(&["true"])))
            },
            closure: Closure { paths: vec![self.path(BUSYBOX)] },
            remaining,
        }
    }

    /// A store path whose bytes lie in this host's directory.
    pub fn path(&self, base_name: &str) -> ClosurePath {
        let path = StorePath::from_base_name(base_name).expect("a base name");
        ClosurePath { path, host_path: self.dir.path().join(base_name) }
    }

    /// The processes of a machine: guard, QEMU.
    pub fn processes(&self, id: MachineId) -> [Process; 2] {
        let of: GuardProcesses = self.said(id, "guard.json");
        [
            Process { pid: of.guard_pid, start_ticks: of.guard_start_ticks },
            Process { pid: of.qemu_pid, start_ticks: of.qemu_start_ticks },
        ]
    }

    /// The daemon of a machine's live store.
    pub fn live_store(&self, id: MachineId) -> Process {
        let of: GuardProcesses = self.said(id, "guard.json");
        let (pid, start_ticks) = of.store.expect("there is one");
        Process { pid, start_ticks }
    }

    /// The cgroups of a machine's QEMU.
    pub fn cgroups(&self, id: MachineId) -> Vec<PathBuf> {
        let cgroups: SandboxCgroups = self.said(id, "cgroups.json");
        cgroups.dirs.into_iter().map(PathBuf::from).collect()
    }

    /// What the guard wrote to the run directory.
    fn said<T: serde::de::DeserializeOwned>(&self, id: MachineId, file: &str) -> T {
        let dir = RunDirs::new(&self.dir.path().join("run"), DriverName::Qemu).path(id);
        let json = std::fs::read(dir.join(file)).expect("the guard wrote it");
        serde_json::from_slice(&json).expect("it parses")
    }
}

pub fn busybox(args: &[&str]) -> Program {
    Program {
        path: format!("/nix/store/{BUSYBOX}/bin/busybox"),
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        env: Default::default(),
        cwd: None,
        extra_roots: vec![],
        work_tree: None,
        stdin: false,
    }
}

/// Waits for something that will be so.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kernels and initrds are made once for all tests.
/// The kernel that guests boot, where it is not the host's.
pub fn chosen_kernel() -> Option<PathBuf> {
    std::env::var_os(KERNEL_VARIABLE).map(PathBuf::from)
}

pub fn images_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("images")
}

fn store_image(closure: &Closure, dir: &Path) -> Result<PathBuf, DriverError> {
    let failed = |text: String| DriverError::new(DriverErrorKind::Failed, text);
    let root = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    for path in &closure.paths {
        let copied = Command::new("cp").arg("-a").arg(&path.host_path).arg(root.path()).status();
        assert!(copied.expect("cp runs").success());
    }
    let (_, image) = tempfile::NamedTempFile::new_in(dir).expect("made").keep().expect("kept");
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(root.path()).output();
    assert!(made.expect("erofs-utils is installed").status.success());
    Ok(image)
}
