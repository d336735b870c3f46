//! The device that lazy delivery mounts through.

use std::fs::File;

use calve_wire::doctor::{Check, CheckStatus};

use super::{bad, ok};

/// What is lost without it.
const COST: &str = "closures cannot be delivered lazily (`calve run --store lazy`, `calve mount`)";

/// Whether this user may mount through `/dev/fuse`.
pub fn present() -> Check {
    let missing = |found: String, mend| bad(CheckStatus::Degraded, "server", "fuse", found, COST, Some(mend));
    match File::options().read(true).write(true).open("/dev/fuse") {
        Err(error) => missing(format!("/dev/fuse cannot be opened: {error}"), "sudo modprobe fuse"),
        Ok(_) if rustix::process::geteuid().is_root() => ok("server", "fuse", "/dev/fuse can be opened"),
        Ok(_) if has_helper() => ok("server", "fuse", "/dev/fuse can be opened, and there is fusermount3"),
        Ok(_) => missing("who is not root needs fusermount3 to mount".to_owned(), "sudo apt install fuse3"),
    }
}

fn has_helper() -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join("fusermount3").is_file())
}
