//! A unit of systemd that goes on with a switch at the next boot, whatever system that boots: it lies where no system's
//! own configuration lies (systemd.unit(5), `system.control`), and only as long as a switch is under way.

use std::io;

use calve_wire::system::{SWITCH_DIR, SWITCH_PROGRAM};

use crate::host::{Host, remove};

const UNITS: &str = "/etc/systemd/system.control";
const UNIT: &str = "calve-switch.service";
const WANTS: &str = "sysinit.target.wants";

/// Puts the unit in place, on a host with systemd.
pub fn place(host: &Host) -> io::Result<()> {
    if !host.path("/run/systemd/system").is_dir() {
        return Ok(());
    }
    let dir = host.path(UNITS);
    std::fs::create_dir_all(dir.join(WANTS))?;
    // Before anything that the new system may get wrong; what it leaves running is not the unit's to kill.
    let text = format!(
        "[Unit]\nDescription=Goes on with a switch of the system\nDefaultDependencies=no\nAfter=local-fs.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nKillMode=process\nExecStart={SWITCH_DIR}/{SWITCH_PROGRAM} resume\n"
    );
    std::fs::write(dir.join(UNIT), text)?;
    let link = dir.join(WANTS).join(UNIT);
    remove(&link)?;
    std::os::unix::fs::symlink(format!("../{UNIT}"), link)
}

/// Takes it away.
pub fn take_away(host: &Host) {
    let _ = remove(&host.path(UNITS).join(WANTS).join(UNIT));
    let _ = remove(&host.path(UNITS).join(UNIT));
}
