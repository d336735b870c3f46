//! What this driver needs of its host.

use calve_wire::doctor::{Check, CheckStatus};

use super::emulator::INSTALL_HINT;
use super::virtiofsd::Virtiofsd;
use super::{QemuDriver, needs};
use crate::driver::DriverError;
use crate::initrd::static_busybox;
use crate::kernel::Transport;
use crate::kvm::KvmState;

/// Checks everything; takes seconds when a guest is started to try KVM.
pub(super) async fn preflight(driver: &QemuDriver) -> Vec<Check> {
    let mut checks = Vec::new();
    let emulator = driver.emulator().await;
    checks.push(match &emulator {
        Ok(emulator) => ok("QEMU", format!("{} ({})", emulator.version, emulator.path.display())),
        Err(error) => missing("QEMU", error, "no guests: systems cannot run, programs only in the sandbox"),
    });
    let options = driver.options.clone();
    let kernel = tokio::task::spawn_blocking(move || needs::kernel_for_guests(&options)).await;
    let has_kernel = matches!(kernel, Ok(Ok(_)));
    checks.push(match kernel {
        Ok(Ok(kernel)) => kernel_check(&kernel.facts),
        Ok(Err(error)) => {
            missing("kernel", &error, "programs cannot run in guests; systems bring their own kernel")
        }
        Err(error) => missing("kernel", &super::probe::broke_off(error), "programs cannot run in guests"),
    });
    if let (Ok(emulator), true) = (&emulator, has_kernel) {
        checks.push(kvm_check(driver.kvm(emulator).await));
    }
    checks.push(busybox_check());
    let virtiofsd = tokio::task::spawn_blocking(Virtiofsd::find).await;
    checks.push(virtiofsd_check(virtiofsd.map_err(super::probe::broke_off).flatten()));
    checks
}

fn kernel_check(facts: &crate::kernel::Facts) -> Check {
    let transport = match facts.transport {
        Transport::MmioAcpi => "microvm",
        Transport::MmioCommandLine => "microvm without ACPI",
        Transport::Pci => "q35",
    };
    let entry = if facts.pvh { "PVH" } else { "bzImage" };
    let found = format!("{} ({entry}, {transport})", facts.version);
    if facts.pvh {
        return ok("kernel", found);
    }
    Check { cost: "guests boot about 0.3 s slower".into(), ..degraded("kernel", found) }
}

fn kvm_check(state: &KvmState) -> Check {
    match state {
        KvmState::Usable => ok("KVM", "a guest has booted under it".into()),
        KvmState::Unusable { why, mend } => Check {
            cost: "guests run in emulation: about ten times slower".into(),
            mend: mend.clone(),
            ..degraded("KVM", why.clone())
        },
    }
}

fn virtiofsd_check(found: Result<Virtiofsd, DriverError>) -> Check {
    match found {
        Ok(found) => ok("virtiofsd", format!("{} ({})", found.version, found.path.display())),
        Err(_) => Check {
            cost: "`calve run --store live` cannot be used: guests get their closure as an image".into(),
            mend: Some(super::virtiofsd::INSTALL_HINT.into()),
            ..degraded("virtiofsd", "not installed".into())
        },
    }
}

fn busybox_check() -> Check {
    match static_busybox() {
        Some(path) => ok("static busybox", path.display().to_string()),
        None => Check {
            cost: "`calve run` without an argument gives a guest without a shell".into(),
            mend: Some("apt-get install busybox-static (Debian, Ubuntu)".into()),
            ..degraded("static busybox", "not installed".into())
        },
    }
}

fn ok(name: &str, found: String) -> Check {
    Check { status: CheckStatus::Ok, ..degraded(name, found) }
}

fn degraded(name: &str, found: String) -> Check {
    let status = CheckStatus::Degraded;
    Check { area: "qemu".into(), name: name.into(), status, found, cost: String::new(), mend: None }
}

fn missing(name: &str, error: &DriverError, cost: &str) -> Check {
    let mend = error.hint.clone().or_else(|| Some(INSTALL_HINT.into()));
    Check { status: CheckStatus::Missing, cost: cost.into(), mend, ..degraded(name, error.to_string()) }
}
