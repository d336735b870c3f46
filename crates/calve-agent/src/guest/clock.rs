//! The guest's clock, where its machine has none of its own.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Sets the clock to what the provider says.
pub(super) fn set(unix_ms: u64) {
    let time = Timespec {
        tv_sec: (unix_ms / 1000).cast_signed(),
        tv_nsec: (unix_ms % 1000 * 1_000_000).cast_signed(),
    };
    // A wrong clock is no reason not to run.
    let _ = clock_settime(ClockId::Realtime, time);
}

/// Sets the clock where it lies before the moment at which the host made the machine.
pub(super) fn set_if_behind(made_unix_ms: u64) {
    let now = clock_gettime(ClockId::Realtime);
    let now_ms = now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000;
    // A real-time clock counts whole seconds.
    if now_ms + 1000 >= made_unix_ms {
        return;
    }
    let since_boot = clock_gettime(ClockId::Boottime);
    set(made_unix_ms + since_boot.tv_sec.unsigned_abs() * 1000);
}
