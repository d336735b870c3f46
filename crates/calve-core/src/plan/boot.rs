//! Rule: an agent must speak within its driver's time.

use std::time::Duration;

use super::draft::Draft;
use super::{On, World};
use crate::limits::{BOOT_MAX_PROVIDER, BOOT_MAX_QEMU, BOOT_MAX_SANDBOX};
use crate::{DriverName, State};

/// Time from creation to the agent's first words.
fn boot_max(driver: DriverName) -> Duration {
    match driver {
        DriverName::Sandbox => BOOT_MAX_SANDBOX,
        DriverName::Qemu => BOOT_MAX_QEMU,
        DriverName::DigitalOcean | DriverName::Proxmox | DriverName::Ssh | DriverName::Exec => {
            BOOT_MAX_PROVIDER
        }
    }
}

pub(super) fn end(draft: &mut Draft<'_>, world: &World<'_>) {
    let (State::Booting, true, Some(driver)) = (draft.machine.state, draft.wanted(), draft.driver()) else {
        return;
    };
    // Nobody listened while no server ran.
    let end = draft.machine.state_since.max(world.since).after(boot_max(driver));
    if draft.now < end {
        return draft.wait(On::Boot, Some(end));
    }
    let seconds = boot_max(driver).as_secs();
    let name = &draft.machine.name;
    let why = match driver {
        // Nothing but the agent says anything before the program is started.
        DriverName::Sandbox => "is this host overloaded?".to_owned(),
        DriverName::Qemu => format!("`calve logs --console {name}` shows its console"),
        DriverName::Ssh => "can the host still be reached?".to_owned(),
        DriverName::DigitalOcean | DriverName::Proxmox | DriverName::Exec => {
            "can it reach this server's door for agents? its console at the provider may tell more".to_owned()
        }
    };
    draft.fail(format!("the agent in the machine did not speak within {seconds} s of its creation; {why}"));
}
