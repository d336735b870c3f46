//! Boot loaders: having the former system boot whatever happens, and the new one once.
//!
//! Known is systemd-boot, whose entries are files (<https://uapi-group.org/specifications/specs/boot_loader_specification>)
//! and whose default stands in `loader/loader.conf` (loader.conf(5)); `bootctl set-oneshot` has an entry tried once.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::host::{Host, sync_dir};

/// Where the boot partition may be mounted.
const BOOT_DIRS: [&str; 3] = ["/boot", "/efi", "/boot/efi"];

/// A boot loader that can be told what to boot.
pub struct Loader {
    /// `loader` on the boot partition.
    dir: PathBuf,
}

impl Loader {
    /// The host's, where it is known.
    pub fn of(host: &Host) -> Option<Self> {
        let mut dirs = BOOT_DIRS.iter().map(|dir| host.path(dir).join("loader"));
        let dir = dirs.find(|dir| dir.join("loader.conf").is_file() && dir.join("entries").is_dir())?;
        Some(Self { dir })
    }

    /// The entry that boots this system: the last by name of those whose options name its init.
    pub fn entry(&self, toplevel: &str) -> Option<String> {
        let init = format!("init={toplevel}/init");
        let boots = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let options = text.lines().filter_map(|line| line.strip_prefix("options"));
            options.flat_map(str::split_whitespace).any(|word| word == init)
        };
        let entries = std::fs::read_dir(self.dir.join("entries")).ok()?.flatten();
        let named = entries.filter(|entry| boots(&entry.path())).map(|entry| entry.file_name());
        named.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".conf")).max()
    }

    /// The entry that boots by default.
    pub fn default_entry(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.dir.join("loader.conf")).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("default")?.trim().to_owned()))
    }

    /// Has an entry boot by default.
    pub fn set_default(&self, entry: &str) -> io::Result<()> {
        if self.default_entry().as_deref() == Some(entry) {
            return Ok(());
        }
        let path = self.dir.join("loader.conf");
        let text = std::fs::read_to_string(&path)?;
        let others = text.lines().filter(|line| line.split_whitespace().next() != Some("default"));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.push(format!("default {entry}"));
        let new = self.dir.join("loader.conf.calve-new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all((lines.join("\n") + "\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        // On FAT, which boot partitions have, a name that was there before leads to the new contents only once the file itself
        // is written: its directory is not enough (`vfat_rename` in Linux).
        file.sync_all()?;
        sync_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_changed_and_the_rest_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("boot/loader");
        std::fs::create_dir_all(dir.join("entries")).unwrap();
        let host = Host::at(root.path().to_owned()).unwrap();
        assert!(Loader::of(&host).is_none());
        std::fs::write(dir.join("loader.conf"), "timeout 5\ndefault nixos-generation-2.conf\neditor no\n")
            .unwrap();
        for (number, system) in [(1, "a"), (2, "b"), (3, "a")] {
            let text = format!("title NixOS\nlinux /k\noptions init=/nix/store/{system}/init quiet\n");
            std::fs::write(dir.join(format!("entries/nixos-generation-{number}.conf")), text).unwrap();
        }
        let loader = Loader::of(&host).unwrap();
        assert_eq!(loader.default_entry().as_deref(), Some("nixos-generation-2.conf"));
        let former = loader.entry("/nix/store/a").unwrap();
        assert_eq!(former, "nixos-generation-3.conf");
        loader.set_default(&former).unwrap();
        loader.set_default(&former).unwrap();
        let text = std::fs::read_to_string(dir.join("loader.conf")).unwrap();
        assert_eq!(text, "timeout 5\neditor no\ndefault nixos-generation-3.conf\n");
        assert_eq!(loader.entry("/nix/store/c"), None);
    }
}
