//! Nix, which builds what is given as an expression; everything else runs without.

use std::process::{Command, Stdio};

use calve_wire::doctor::{Check, CheckStatus};

use super::{bad, ok};

const COST: &str = "flakes, `-A attr file` and Git sources cannot be built; store paths, directories and static programs run";
const MEND: &str = "sh <(curl -L https://nixos.org/nix/install)   # or: sudo apt-get install nix-bin";

/// Whether there is a Nix.
pub fn present() -> Check {
    match Command::new("nix").arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            ok("nix", "nix", String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            let found = format!("`nix --version` ended with {}", output.status);
            bad(CheckStatus::Degraded, "nix", "nix", found, COST, Some(MEND))
        }
        Err(error) => {
            let found = format!("`nix` cannot be started: {error}");
            bad(CheckStatus::Degraded, "nix", "nix", found, COST, Some(MEND))
        }
    }
}
