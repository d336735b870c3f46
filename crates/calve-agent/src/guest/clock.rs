//! The guest's clock, where its machine has none of its own.

/// Sets the clock.
pub(super) fn set(unix_ms: u64) {
    let time = libc::timespec {
        tv_sec: (unix_ms / 1000).cast_signed(),
        tv_nsec: (unix_ms % 1000 * 1_000_000).cast_signed(),
    };
    // A wrong clock is no reason not to run.
    // SAFETY: a system call that reads a local structure.
    let _ = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
}

/// Sets the clock where it lies before the moment at which the host made the machine.
pub(super) fn set_if_behind(made_unix_ms: u64) {
    // A real-time clock counts whole seconds.
    if now_ms(libc::CLOCK_REALTIME) + 1000 >= made_unix_ms {
        return;
    }
    let unix_ms = made_unix_ms + now_ms(libc::CLOCK_BOOTTIME) / 1000 * 1000;
    set(unix_ms);
}

/// A clock's milliseconds, from the C library: the other one looks for the kernel's clock itself, which a start in emulation
/// would have to wait for.
pub(super) fn now_ms(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a system call that writes a local structure; every kernel has these clocks.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
