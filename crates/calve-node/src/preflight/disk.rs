//! Room on disk.

use std::path::Path;

use calve_wire::doctor::{Check, CheckStatus};

use super::{bad, ok};

/// Below this, records and logs of a few machines may not fit.
const NEEDED_BYTES: u64 = 64 << 20;
/// Below this, one image of a middling closure may not fit.
const WANTED_BYTES: u64 = 2 << 30;

/// Room where `dir` is or will be.
pub fn room(name: &str, dir: &Path) -> Check {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(there) {
        Ok(fs) => fs.f_bavail.saturating_mul(fs.f_frsize),
        Err(error) => {
            let found = format!("{} cannot be looked at: {error}", there.display());
            return bad(
                CheckStatus::Degraded,
                "server",
                name,
                found,
                "a full disk will come unforeseen",
                None,
            );
        }
    };
    let found = format!("{} MiB free for {}", free >> 20, dir.display());
    let mend = Some("calve prune");
    match free {
        0..NEEDED_BYTES => {
            bad(CheckStatus::Missing, "server", name, found, "records cannot be written", mend)
        }
        NEEDED_BYTES..WANTED_BYTES => {
            bad(CheckStatus::Degraded, "server", name, found, "images of large closures may not fit", mend)
        }
        _ => ok("server", name, found),
    }
}
