//! Which driver makes a machine.

use crate::plan::Drivers;
use crate::{DriverName, Machine, Runs};

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This driver makes it.
    Driver(DriverName),
    /// Not all of the drivers that matter have been looked at since the machine was declared.
    NotYet,
    /// No driver can make it: one sentence with a hint.
    Nowhere(String),
}

/// Chooses a driver for `machine`: the wanted one, else the first usable one of [`preference`].
pub fn choose(machine: &Machine, drivers: &Drivers) -> Choice {
    if let Some(wanted) = machine.wanted_driver {
        if machine.runs.is_adopted() {
            // It is there already: what making one takes does not matter.
            return Choice::Driver(wanted);
        }
        return choose_wanted(machine, wanted, drivers);
    }
    let preferred = preference(machine.runs);
    for &driver in preferred {
        match drivers.usable.get(&driver) {
            Some(Ok(())) => return Choice::Driver(driver),
            Some(Err(_)) if drivers.as_of >= Some(machine.created_at) => {}
            Some(Err(_)) | None => return Choice::NotYet,
        }
    }
    let reasons: Vec<String> = preferred.iter().map(|driver| unusable(*driver, drivers)).collect();
    Choice::Nowhere(format!("no driver can make this machine: {}; see `calve doctor`", reasons.join("; ")))
}

/// Drivers that can make a machine with this workload, the best first: a sandbox starts faster, but a system boots its
/// own kernel, and who asks for a bare machine mostly wants a kernel of their own.
pub fn preference(runs: Runs) -> &'static [DriverName] {
    match runs {
        Runs::Program => &[DriverName::Sandbox, DriverName::Qemu],
        Runs::System => &[DriverName::Qemu],
        Runs::Base => &[DriverName::Qemu, DriverName::Sandbox],
        // Only the driver that has it already.
        Runs::Adopted | Runs::Host => &[],
    }
}

/// Whether a driver can make machines with this workload at all. Those that cost money are never preferred, only asked for.
fn can_make(driver: DriverName, runs: Runs) -> bool {
    match driver {
        DriverName::Sandbox | DriverName::Qemu => preference(runs).contains(&driver),
        // What was made of an image is switched to the system.
        DriverName::DigitalOcean | DriverName::Proxmox | DriverName::Exec => true,
        DriverName::Ssh => runs != Runs::System,
    }
}

fn choose_wanted(machine: &Machine, wanted: DriverName, drivers: &Drivers) -> Choice {
    if !can_make(wanted, machine.runs) {
        if wanted == DriverName::Ssh {
            let sentence = "a borrowed host keeps its own system; `calve adopt ssh://HOST --ttl none`, and then `calve switch`, give \
                            it another";
            return Choice::Nowhere(sentence.to_owned());
        }
        return Choice::Nowhere(format!(
            "a system boots its own kernel, which the driver {wanted} cannot do; use --driver qemu or none"
        ));
    }
    match drivers.usable.get(&wanted) {
        Some(Ok(())) => Choice::Driver(wanted),
        Some(Err(_)) if drivers.as_of >= Some(machine.created_at) => Choice::Nowhere(format!(
            "{}; choose another --driver or see `calve doctor`",
            unusable(wanted, drivers)
        )),
        Some(Err(_)) | None => Choice::NotYet,
    }
}

fn unusable(driver: DriverName, drivers: &Drivers) -> String {
    let why = drivers.usable.get(&driver).and_then(|usable| usable.as_ref().err());
    format!("the driver {driver} cannot be used: {}", why.map_or("nothing is known of it", String::as_str))
}
