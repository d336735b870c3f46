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
/// Most bytes in all of a program's environment: the kernel takes a quarter of the stack limit (2 MiB) for
/// arguments and environment together (execve(2)).
pub const ENV_MAX_BYTES: usize = 1024 * 1024;
/// Most bytes in one environment variable or argument (`MAX_ARG_STRLEN`, execve(2)).
pub const ARG_MAX_BYTES: usize = 128 * 1024 - 1;
/// Most published ports of one machine.
pub const PORTS_MAX: usize = 64;
/// Most machines that are not gone, per server: bounds memory and the length of one round.
pub const MACHINES_MAX: usize = 20_000;
