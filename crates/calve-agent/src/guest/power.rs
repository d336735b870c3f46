//! The end of a guest.

use rustix::system::{RebootCommand, reboot};

/// Powers the machine off: at a provider a restart would only start it again. Where that is not possible, it ends in the
/// other way.
pub fn power_off() {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    end_machine();
}

/// Ends the machine: what was written is written, and QEMU ends within milliseconds. With `-no-reboot` a restart is an end,
/// and the only one that every machine type takes (a microVM without ACPI cannot power off).
pub fn end_machine() {
    rustix::fs::sync();
    // It fails only for want of rights, which the first process has not lost; then its end is a panic, which ends QEMU too.
    let _ = reboot(RebootCommand::Restart);
}
