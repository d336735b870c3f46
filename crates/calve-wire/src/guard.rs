//! What lies between a driver and the guard of a guest: files in the run directory, and a word each way at the start.
//!
//! ```text
//!  driver ── starts ──▶ calve-agent guard ── starts ──▶ QEMU
//!     ◀── "ready" or one line why not ──┤  (standard output; its end ends the wait as well)
//!     ├── GO_BYTE: it is written down ──▶  (standard input; its end in place of the byte: undo everything)
//!     └── lease.json, replaced at each change ──▶ read again by the guard
//! ```
//! With a live store the guard has a second child, the daemon that serves it: neither outlives the guard.

use serde::{Deserialize, Serialize};

use crate::agent::StoreMount;

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
/// [`EndCause`], the same for programs; written before the guard ends, which is before the machine counts as dead.
pub const END_CAUSE_FILE: &str = "ended.json";
/// [`LiveStore`], written by the driver before the start; absent where the guest has its closure as an image, or none.
pub const LIVE_STORE_FILE: &str = "store.json";
/// Where QEMU reaches the daemon that serves the live store.
pub const LIVE_STORE_SOCKET: &str = "store.sock";
/// Directory on which that daemon sees the closure and nothing else; for everybody else it is empty.
pub const LIVE_STORE_DIR: &str = "store";
/// A second control socket of QEMU, for the guard alone: one that serves the driver cannot be listened to meanwhile.
pub const GUARD_SOCKET: &str = "guard.sock";
/// Word on the kernel's command line, added by the guard, that the limit of the processors could not be set.
pub const CPUS_UNLIMITED: &str = "calve.cpus=unlimited";
/// Word on the kernel's command line of an image for providers: the machine reads the rest from its provider's metadata.
pub const CLOUD_PARAMETER: &str = "calve.mode=cloud";
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
    /// The daemon of the live store and its start time, where there is one.
    #[serde(default)]
    pub store: Option<(i32, u64)>,
}

/// A closure that a guest gets live out of the host's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStore {
    /// The daemon and its arguments. It is started in the run directory; its standard input is the listening socket.
    pub argv: Vec<String>,
    /// The closure: where each store path lies on the host.
    pub paths: Vec<StoreMount>,
}

/// Why QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum EndCause {
    /// The guest powered its machine off, or restarted it.
    PoweredOff,
    /// The guest's kernel panicked.
    Panicked,
    /// Somebody on the host killed QEMU or asked it to quit.
    Killed {
        /// The signal, where it died of one.
        signal: Option<i32>,
    },
    /// QEMU failed by itself, with this exit code.
    Failed {
        /// Its exit code.
        code: i32,
    },
    /// The guard ended it: the lease was over, or what the machine needs was gone.
    Guard,
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
