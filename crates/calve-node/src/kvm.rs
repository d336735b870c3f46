//! Whether KVM runs guests on this host: a `/dev/kvm` that opens proves nothing, so one of our guests is started with it.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use calve_core::{DriverName, MachineId, Timestamp};
use calve_wire::agent::Remaining;
use calve_wire::guard::{CONSOLE_FILE, PROBE_MARKER};
use serde::{Deserialize, Serialize};

use crate::driver::DriverError;
use crate::driver::qemu::probe::{Devices, Emulator, Guard, GuestPlan, Mode, Parameters};
use crate::driver::qemu::{QemuOptions, probe};
use crate::images;
use crate::run_dir::RunDirs;

/// A guest under KVM boots in half a second; the guard ends one that hangs at the same time
/// ([`calve_wire::guard::GUARD_SLACK_MS`] after a lease of nothing).
const BOOT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a person can do about a processor that no guest runs on.
const NESTED_HINT: &str =
    "switch on virtualisation in the firmware, or nested virtualisation in the hypervisor";

/// What is known of KVM on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum KvmState {
    /// A guest has booted under it.
    Usable,
    /// It is not used.
    Unusable {
        /// Why, for people.
        why: String,
        /// What mends it, where something does.
        mend: Option<String>,
    },
}

impl KvmState {
    /// Whether guests run under KVM.
    pub fn is_usable(&self) -> bool {
        *self == Self::Usable
    }
}

/// What is known, or is found out now: once for each QEMU and kernel in a boot of the host.
pub(crate) async fn state(options: &QemuOptions, emulator: &Emulator) -> KvmState {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        let mend = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Some("sudo usermod -aG kvm $USER, then log in again".to_owned())
            }
            _ => Some(NESTED_HINT.to_owned()),
        };
        return KvmState::Unusable { why: format!("/dev/kvm cannot be opened: {error}"), mend };
    }
    match known_or_probed(options, emulator).await {
        Ok(state) => state,
        Err(error) => KvmState::Unusable { why: format!("it could not be tried: {error}"), mend: error.hint },
    }
}

async fn known_or_probed(options: &QemuOptions, emulator: &Emulator) -> Result<KvmState, DriverError> {
    let plan = {
        let (options, emulator) = (options.clone(), emulator.clone());
        tokio::task::spawn_blocking(move || probe_plan(&options, &emulator))
            .await
            .map_err(probe::broke_off)??
    };
    let key = images::key(&[&emulator.version, &plan.kernel.to_string_lossy(), &boot_id()]);
    let known = options.images_dir.join(format!("kvm-{key}.json"));
    if let Some(state) = std::fs::read(&known).ok().and_then(|json| serde_json::from_slice(&json).ok()) {
        return Ok(state);
    }
    let state = if boots(options, &plan).await? {
        KvmState::Usable
    } else {
        let why = format!("a guest did not boot under it within {} s", BOOT_TIMEOUT.as_secs());
        // It opens and runs nothing: mostly this host is a guest itself.
        KvmState::Unusable { why, mend: Some(NESTED_HINT.to_owned()) }
    };
    // Where it cannot be kept, it is found out again.
    let _ = images::write(&known, &[&serde_json::to_vec(&state).expect("plain data")]);
    Ok(state)
}

/// This boot of the host.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn probe_plan(options: &QemuOptions, emulator: &Emulator) -> Result<GuestPlan, DriverError> {
    let kernel = probe::kernel_for_guests(options)?;
    let initrd = probe::initrd_for(options, &kernel, &Devices::default(), None, None)?;
    let parameters = Parameters {
        mode: Mode::Probe,
        token: "0".repeat(32),
        hostname: "probe".into(),
        remaining: OVER,
        network: false,
        store: None,
        pids: None,
        start: false,
        unix_ms: 0,
        emulated_tsc_khz: None,
    };
    Ok(GuestPlan {
        qemu: emulator.path.clone(),
        kvm: true,
        transport: kernel.facts.transport,
        qboot: emulator.qboot && kernel.facts.pvh,
        cpus: 1,
        memory_mib: 256,
        kernel: kernel.boot,
        initrd,
        kernel_parameters: parameters.line().map_err(probe::unusable)?,
        store: None,
        cpus_milli: None,
        network: false,
        random_device: false,
        start: None,
    })
}

/// A lease that is over at once: only the guard's slack is left.
const OVER: Remaining = Remaining { until_deadline_ms: Some(0), grace_ms: 0 };

async fn boots(options: &QemuOptions, plan: &GuestPlan) -> Result<bool, DriverError> {
    let dirs = RunDirs::new(&options.runtime_dir.join("probe"), DriverName::Qemu);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = MachineId::new(
        Timestamp(now.as_millis() as u64),
        u128::from(std::process::id()) << 32 | u128::from(now.subsec_nanos()),
    );
    let dir = dirs.create(id).map_err(probe::unwritable)?;
    let booted = booted_in(options, plan, &dir).await;
    probe::end(&dirs, id).await.map_err(probe::unwritable)?;
    booted
}

async fn booted_in(options: &QemuOptions, plan: &GuestPlan, dir: &Path) -> Result<bool, DriverError> {
    probe::write_lease(dir, OVER).map_err(probe::unwritable)?;
    // A QEMU that does not even start with KVM is an answer, not an error.
    let Ok(guard) = Guard::start(&options.agent_binary, dir, plan).await else { return Ok(false) };
    let process = guard.process();
    guard.release().await.map_err(probe::unwritable)?;
    if let Some(process) = process {
        probe::gone(process, BOOT_TIMEOUT).await.map_err(probe::unwritable)?;
    }
    Ok(std::fs::read_to_string(dir.join(CONSOLE_FILE)).is_ok_and(|console| console.contains(PROBE_MARKER)))
}
