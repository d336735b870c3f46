//! The frequency of the host's time stamp counter, which emulation passes through to guests.

use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::images;
use crate::kvm::boot_id;

/// How long is measured: with the error of two readings (below 1 µs when not descheduled) it gives 0.01 %.
const MEASURED: Duration = Duration::from_millis(50);
/// Readings of which the quickest is taken: in that one nothing came in between.
const READINGS: u32 = 16;

/// The frequency in kHz; measured once per boot of the host and kept in `images_dir`. Blocks while it measures.
pub(crate) fn host_khz(images_dir: &Path) -> u64 {
    let kept = images_dir.join(format!("tsc-{}", boot_id()));
    if let Some(khz) = std::fs::read_to_string(&kept).ok().and_then(|text| text.trim().parse().ok()) {
        return khz;
    }
    let khz = measure();
    // Where it cannot be kept, it is measured again.
    let _ = images::write(&kept, &[khz.to_string().as_bytes()]);
    khz
}

fn measure() -> u64 {
    let (start_ns, start) = reading();
    std::thread::sleep(MEASURED);
    let (end_ns, end) = reading();
    let khz = u128::from(end.wrapping_sub(start)) * 1_000_000 / u128::from((end_ns - start_ns).max(1));
    u64::try_from(khz).unwrap_or(0)
}

/// Both clocks at one moment.
fn reading() -> (u64, u64) {
    let take = |_| {
        let before = now_ns();
        // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
        let counter = unsafe { core::arch::x86_64::_rdtsc() };
        let after = now_ns();
        (after - before, before + (after - before) / 2, counter)
    };
    let quickest = (0..READINGS).map(take).min().expect("there is more than one reading");
    (quickest.1, quickest.2)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (measure(), measure());
        assert!(a.abs_diff(b) * 100 < a, "{a} and {b} kHz");
    }
}
