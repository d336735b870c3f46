//! The device that makes network devices.

use std::fs::File;

use calve_wire::doctor::{Check, CheckStatus};

use super::{bad, ok};

/// Whether `/dev/net/tun` may be opened.
pub fn present() -> Check {
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => ok("server", "tun device", "/dev/net/tun can be opened"),
        Err(error) => {
            let found = format!("/dev/net/tun cannot be opened: {error}");
            let cost =
                "machines cannot be given network devices of their own; published ports and forwards work";
            bad(CheckStatus::Degraded, "server", "tun device", found, cost, Some("sudo modprobe tun"))
        }
    }
}
