//! What lies between a driver and the guard of a guest: files in the run directory, and a word each way at the start.
//!
//! ```text
//!  driver ── starts ──▶ calve-agent guard ── starts ──▶ QEMU
//!     ◀── "ready" or one line why not ──┤  (standard output; its end ends the wait as well)
//!     ├── GO_BYTE: it is written down ──▶  (standard input; its end in place of the byte: undo everything)
//!     └── lease.json, replaced at each change ──▶ read again by the guard
//! ```

use serde::{Deserialize, Serialize};

/// The lease, written by the driver before the start and at each change. When it is gone, the guard ends QEMU.
pub const LEASE_FILE: &str = "lease.json";
/// [`GuardProcesses`], written by the guard before QEMU does anything.
pub const PROCESSES_FILE: &str = "guard.json";
/// The serial console, at most [`CONSOLE_MAX_BYTES`]: older output is dropped.
pub const CONSOLE_FILE: &str = "console.log";
/// Why QEMU ended: a sentence for people, then the end of the console. Written when it ended.
pub const END_FILE: &str = "ended.txt";
/// Most bytes of a console that are kept: a boot prints 30 kB, and a guest must not fill its host's disk.
pub const CONSOLE_MAX_BYTES: u64 = 1024 * 1024;
/// What is left of a console that has grown beyond the most: its last bytes, in a new file.
pub const CONSOLE_KEPT_BYTES: u64 = CONSOLE_MAX_BYTES / 2;
/// What a guest prints on its console when it was started only to see whether guests boot.
pub const PROBE_MARKER: &str = "calve-guest-has-booted";
/// The guard's first line when QEMU runs and its sockets accept connections.
pub const READY_LINE: &str = "ready";
/// The driver's answer once the machine is written down.
pub const GO_BYTE: u8 = b'G';
/// Time from the end of a lease's grace to the guard's kill: the agent in the guest and the server come first.
pub const GUARD_SLACK_MS: u64 = 5_000;

/// A lease in terms of the host's clock that neither stops nor jumps (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardLease {
    /// The deadline in milliseconds since boot; none where the lease has no end.
    pub deadline_boottime_ms: Option<u64>,
    /// Time from the deadline to the destruction.
    pub grace_ms: u64,
}

impl GuardLease {
    /// When the guard kills QEMU, in milliseconds since boot.
    pub fn kill_at_boottime_ms(&self) -> Option<u64> {
        let deadline = self.deadline_boottime_ms?;
        Some(deadline.saturating_add(self.grace_ms).saturating_add(GUARD_SLACK_MS))
    }
}

/// The processes of a guest on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardProcesses {
    /// The guard's process id.
    pub guard_pid: i32,
    /// Its start time in clock ticks since boot (`proc_pid_stat(5)`, field 22).
    pub guard_start_ticks: u64,
    /// QEMU's process id.
    pub qemu_pid: i32,
    /// Its start time, likewise.
    pub qemu_start_ticks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_comes_after_deadline_and_grace() {
        let lease: GuardLease =
            serde_json::from_str(r#"{"deadline_boottime_ms":1000,"grace_ms":20}"#).unwrap();
        assert_eq!(lease.kill_at_boottime_ms(), Some(1020 + GUARD_SLACK_MS));
        assert_eq!(GuardLease { deadline_boottime_ms: None, grace_ms: 0 }.kill_at_boottime_ms(), None);
        let last = GuardLease { deadline_boottime_ms: Some(u64::MAX), grace_ms: 1 };
        assert_eq!(last.kill_at_boottime_ms(), Some(u64::MAX));
    }
}
