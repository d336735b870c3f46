//! The limits of the control plane: each a named constant with its unit and its reason.

use std::time::Duration;

/// Lease of a machine for which none was said.
pub const TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// Shortest lease: below this a guest would end before it has booted.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest lease: a year. Who wants longer says `none`.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Time between SIGTERM and SIGKILL where none was said.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest grace: a stop must end within an hour.
pub const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Most bytes of a program's arguments and environment together: they must fit into the machine's record, which every
/// backend of the state can hold up to 512 KiB, with room for the rest of it. The kernel takes 2 MiB (execve(2)).
pub const ENV_MAX_BYTES: usize = 480 * 1024;
/// Most bytes in one environment variable or argument (`MAX_ARG_STRLEN`, execve(2)).
pub const ARG_MAX_BYTES: usize = 128 * 1024 - 1;
/// Most published ports of one machine.
pub const PORTS_MAX: usize = 64;
/// Most machines that are not gone, per server: bounds memory and the length of one round.
pub const MACHINES_MAX: usize = 20_000;

/// Creations of one machine before it counts as failed: retries are for passing shortages, not for broken orders.
pub const ATTEMPTS_MAX: u32 = 4;
/// Pause before the second creation; each further one waits twice as long.
pub const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);
/// Time in which a sandbox's agent must speak: it takes milliseconds; the rest is for an overloaded host.
pub const BOOT_MAX_SANDBOX: Duration = Duration::from_secs(30);
/// Time in which a guest's agent must speak: a full system in emulation on a busy host takes minutes.
pub const BOOT_MAX_QEMU: Duration = Duration::from_secs(600);
/// Time in which the agent of a machine at a provider must speak: it is made within two minutes, and boots.
pub const BOOT_MAX_PROVIDER: Duration = Duration::from_secs(600);
/// Time beyond the grace in which an agent may finish a stop by itself before its machine is destroyed under it.
pub const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long the destruction of an ended machine waits for the rest of its log.
pub const LOG_WAIT_MAX: Duration = Duration::from_secs(30);
/// A machine that went away this shortly before its deadline was ended by its agent's own clock.
pub const LEASE_SKEW: Duration = Duration::from_secs(1);
/// How long the record, log and name of an ended machine are kept.
pub const RECORD_KEEP: Duration = Duration::from_secs(24 * 3600);
/// Most records of ended machines: above it the oldest are forgotten, so that lists stay short.
pub const RECORDS_KEEP_MAX: usize = 10_000;
