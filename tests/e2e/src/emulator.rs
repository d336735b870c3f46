//! QEMU as tests run it that make guests of their own: in emulation, with nothing that is not asked for.

use std::path::Path;
use std::process::{Command, Stdio};

/// The processor that emulation shows; see the driver for guests of this host.
const CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand";

/// QEMU with one processor, a machine of this type, so much memory, and this file as its serial console.
pub fn emulator(machine: &str, memory_mib: u64, console: &Path) -> Command {
    // Also a test that is killed leaves none behind.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-machine", &format!("{machine},accel=tcg"), "-cpu", CPU]);
    command.args(["-smp", "1", "-m", &format!("{memory_mib}M")]);
    command.args(["-serial", &format!("file:{}", console.display())]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}
