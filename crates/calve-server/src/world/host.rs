//! What the server itself needs of the host: space for its data, and Nix where there is one.

use std::path::Path;

use calve_wire::doctor::{Check, CheckStatus};

/// Free space below which nothing useful can be run, in bytes: a guest's image and its log.
const SPACE_MISSING_BYTES: u64 = 64 * 1024 * 1024;
/// Free space below which it soon gets tight, in bytes: some closures' images.
const SPACE_DEGRADED_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Free inodes below which logs and run directories may fail.
const INODES_DEGRADED: u64 = 10_000;
/// Where Nix keeps what it knows of its store.
const NIX_DATABASE: &str = "/nix/var/nix/db/db.sqlite";

/// The checks, for the data and runtime directories.
pub fn checks(data_dir: &Path, run_dir: &Path) -> Vec<Check> {
    vec![space(data_dir, "disk space for data"), space(run_dir, "disk space for running machines"), nix()]
}

fn space(dir: &Path, name: &str) -> Check {
    let check = |status, found: String| Check {
        area: "server".to_owned(),
        name: name.to_owned(),
        status,
        found,
        cost: String::new(),
        mend: None,
    };
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(error) => return check(CheckStatus::Missing, format!("{}: {error}", dir.display())),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MiB free in {}", free / (1024 * 1024), dir.display());
    let few_inodes = stat.f_files > 0 && stat.f_favail < INODES_DEGRADED;
    if free >= SPACE_DEGRADED_BYTES && !few_inodes {
        return check(CheckStatus::Ok, found);
    }
    let found = if few_inodes { format!("{found}, {} inodes free", stat.f_favail) } else { found };
    let status = if free < SPACE_MISSING_BYTES { CheckStatus::Missing } else { CheckStatus::Degraded };
    Check {
        cost: "logs and images will not fit; machines stop or cannot be made".to_owned(),
        mend: Some("calve prune".to_owned()),
        ..check(status, found)
    }
}

fn nix() -> Check {
    let found = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
    };
    let check = |status, found: String, cost: &str, mend: Option<&str>| Check {
        area: "nix".to_owned(),
        name: "Nix on this host".to_owned(),
        status,
        found,
        cost: cost.to_owned(),
        mend: mend.map(str::to_owned),
    };
    let install = Some("sh <(curl -L https://nixos.org/nix/install)");
    match (found("nix").or_else(|| found("nix-build")), Path::new(NIX_DATABASE).exists()) {
        (Some(nix), true) => {
            check(CheckStatus::Ok, format!("{} and {NIX_DATABASE}", nix.display()), "", None)
        }
        (None, true) => check(
            CheckStatus::Degraded,
            format!("{NIX_DATABASE}, but no `nix` in PATH"),
            "store paths run, but nothing can be built first (flake references, -A attributes)",
            install,
        ),
        (Some(nix), false) => check(
            CheckStatus::Degraded,
            format!("{}, but no {NIX_DATABASE}", nix.display()),
            "only what calve itself added to its private store can be run",
            None,
        ),
        (None, false) => check(
            CheckStatus::Degraded,
            "none".to_owned(),
            "plain programs and directories run, but store paths of Nix and things to be built do not",
            install,
        ),
    }
}
