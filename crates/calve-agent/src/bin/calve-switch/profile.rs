//! The profile of the host's systems as Nix keeps it: `system` leads to `system-<n>-link`, and that to a store path.

use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use calve_wire::system::Generation;

use crate::host::{Host, remove, replace_link, sync_dir};

const PROFILES: &str = "/nix/var/nix/profiles";
/// A link to the former generation that is made beforehand: to move it into place takes no room on the disk.
const SPARE: &str = "system-calve-former";

fn dir(host: &Host) -> PathBuf {
    host.path(PROFILES)
}

fn link_name(number: u64) -> String {
    format!("system-{number}-link")
}

fn number_of(link: &str) -> Option<u64> {
    link.rsplit('/').next()?.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()
}

/// Where the profile's link leads: the link of a generation.
pub fn current_link(host: &Host) -> Option<String> {
    host.link(&format!("{PROFILES}/system"))
}

/// The system to which the profile leads.
pub fn current(host: &Host) -> Option<String> {
    let link = current_link(host)?;
    // It may also lead to a system itself, where somebody made it by hand.
    if number_of(&link).is_none() {
        return Some(link);
    }
    host.link(&format!("{PROFILES}/{}", link.rsplit('/').next()?))
}

/// All generations, the oldest first.
pub fn generations(host: &Host) -> Vec<Generation> {
    let current = current_link(host).and_then(|link| number_of(&link));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir(host)).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(number) = number_of(&name) else { continue };
        let Some(toplevel) = host.link(&format!("{PROFILES}/{name}")) else { continue };
        let made = std::fs::symlink_metadata(entry.path()).map_or(0, |meta| meta.mtime());
        let made_unix_ms = made.unsigned_abs() * 1000;
        found.push(Generation { number, toplevel, made_unix_ms, current: current == Some(number) });
    }
    found.sort_by_key(|generation| generation.number);
    found
}

/// What a switch to `toplevel` will find and make.
pub struct Plan {
    /// Where the profile's link leads now.
    pub former_link: String,
    /// The new system's generation.
    pub generation: u64,
}

/// Prepares a switch: makes the spare link, and a first generation of the running system on a host that has none.
pub fn prepare(host: &Host, former: &str, toplevel: &str, wanted: Option<u64>) -> io::Result<Plan> {
    let dir = dir(host);
    std::fs::create_dir_all(&dir)?;
    let former_link = match current_link(host) {
        Some(link) => link,
        None => {
            let first = link_name(generations(host).last().map_or(1, |last| last.number + 1));
            symlink(former, dir.join(&first))?;
            replace_link(&first, &dir.join("system"))?;
            first
        }
    };
    replace_link(&former_link, &dir.join(SPARE))?;
    let all = generations(host);
    // As Nix does: what the current generation is already is not made again.
    let fits = |generation: &&Generation| {
        generation.toplevel == toplevel && (generation.current || wanted == Some(generation.number))
    };
    let known = all.iter().rev().find(fits);
    let generation = known.map_or(all.last().map_or(1, |last| last.number + 1), |known| known.number);
    Ok(Plan { former_link, generation })
}

/// Has the profile lead to the new system.
pub fn set(host: &Host, toplevel: &str, generation: u64) -> io::Result<()> {
    let (dir, name) = (dir(host), link_name(generation));
    if host.link(&format!("{PROFILES}/{name}")).as_deref() != Some(toplevel) {
        replace_link(toplevel, &dir.join(&name))?;
    }
    replace_link(&name, &dir.join("system"))
}

/// Has the profile lead to the former generation again.
pub fn restore(host: &Host, former_link: &str) -> io::Result<()> {
    if current_link(host).as_deref() == Some(former_link) {
        return Ok(());
    }
    let dir = dir(host);
    if std::fs::rename(dir.join(SPARE), dir.join("system")).is_err() {
        return replace_link(former_link, &dir.join("system"));
    }
    sync_dir(&dir)
}

/// Removes what [`prepare`] made for the way back.
pub fn tidy(host: &Host) {
    let _ = remove(&dir(host).join(SPARE));
}

/// Whether a store path of the host is a system that can be switched to.
pub fn check(host: &Host, toplevel: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    if !host.path(toplevel).is_dir() {
        return Err(format!("{toplevel} is not on the host"));
    }
    let program = format!("{toplevel}/bin/switch-to-configuration");
    let Ok(meta) = std::fs::metadata(host.path(&program)) else {
        return Err(format!(
            "{toplevel} is no system that can be switched to: it has no bin/switch-to-configuration"
        ));
    };
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{program} is not executable"));
    }
    Ok(())
}

/// The program that activates a system.
pub fn switch_program(host: &Host, toplevel: &str) -> PathBuf {
    host.path(&format!("{}/bin/switch-to-configuration", Path::new(toplevel).display()))
}
