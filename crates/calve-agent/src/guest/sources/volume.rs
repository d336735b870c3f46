//! Volumes that hold user data, told by their labels.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::{Found, Plan};
use crate::guest::mounts;

/// Where a volume is mounted while it is read.
const MOUNT_POINT: &str = "/run/calve-source";
/// Most bytes of a file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// The kinds of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Label `cidata`.
    NoCloud,
    /// Label `config-2`.
    ConfigDrive,
}

/// What the first such volume says; none where there is none with user data.
pub(super) fn look() -> anyhow::Result<Option<Found>> {
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let device = Path::new("/dev").join(entry.file_name());
        let Some((kind, file_system)) = File::open(&device).ok().and_then(|file| labelled(&file)) else {
            continue;
        };
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mounts::attach(&device.to_string_lossy(), MOUNT_POINT, file_system, flags, "")?;
        let found = read(Path::new(MOUNT_POINT), kind);
        let _ = unmount(MOUNT_POINT, UnmountFlags::DETACH);
        if let Some(found) = found? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a volume is by its label, and its file system (ECMA-119, 8.4; Microsoft's FAT specification, 3.1 to 3.3).
fn labelled(file: &File) -> Option<(Kind, &'static str)> {
    let text = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    let (file_system, label) = if text(32_769, 5)? == b"CD001" {
        ("iso9660", text(32_808, 32)?)
    } else if text(82, 5)? == b"FAT32" {
        ("vfat", text(71, 11)?)
    } else if text(54, 3)? == b"FAT" {
        ("vfat", text(43, 11)?)
    } else {
        return None;
    };
    let label = label.trim_ascii();
    if label.eq_ignore_ascii_case(b"cidata") {
        Some((Kind::NoCloud, file_system))
    } else if label.eq_ignore_ascii_case(b"config-2") {
        Some((Kind::ConfigDrive, file_system))
    } else {
        None
    }
}

/// What the volume at `root` says; none where it has no user data.
fn read(root: &Path, kind: Kind) -> anyhow::Result<Option<Found>> {
    let (user_data, network) = match kind {
        Kind::NoCloud => (root.join("user-data"), root.join("network-config")),
        Kind::ConfigDrive => {
            let dir: PathBuf = root.join("openstack/latest");
            (dir.join("user_data"), dir.join("network_data.json"))
        }
    };
    let Some(user_data) = text(&user_data)? else { return Ok(None) };
    let plan = match text(&network)? {
        None => None,
        Some(text) if kind == Kind::NoCloud => Plan::of_network_config(&text),
        Some(text) => Plan::of_network_data(&text).context("the volume's network_data.json")?,
    };
    Ok(Some(Found { user_data, plan, unix_ms: None }))
}

fn text(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(file) if file.len() > FILE_MAX_BYTES => anyhow::bail!("{} is too large", path.display()),
        Ok(_) => {
            Ok(Some(fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?))
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64 * 1024).expect("room");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("written");
        }
        file
    }

    #[test]
    fn volumes_are_known_by_their_labels() {
        let iso = volume(&[(32_769, b"CD001"), (32_808, b"cidata                          ")]);
        assert_eq!(labelled(&iso), Some((Kind::NoCloud, "iso9660")));
        let fat32 = volume(&[(82, b"FAT32   "), (71, b"CONFIG-2   ")]);
        assert_eq!(labelled(&fat32), Some((Kind::ConfigDrive, "vfat")));
        let fat16 = volume(&[(54, b"FAT16   "), (43, b"CIDATA     ")]);
        assert_eq!(labelled(&fat16), Some((Kind::NoCloud, "vfat")));
        assert_eq!(labelled(&volume(&[(54, b"FAT16   "), (43, b"NO NAME    ")])), None);
        assert_eq!(labelled(&volume(&[])), None);
        assert_eq!(labelled(&tempfile::tempfile().expect("an empty one")), None);
    }

    #[test]
    fn both_kinds_are_read_and_one_without_user_data_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path(), Kind::NoCloud).expect("read"), None);
        fs::write(dir.path().join("user-data"), "u").expect("written");
        let found = read(dir.path(), Kind::NoCloud).expect("read").expect("there");
        assert_eq!((found.user_data.as_str(), found.plan), ("u", None));
        fs::create_dir_all(dir.path().join("openstack/latest")).expect("made");
        fs::write(dir.path().join("openstack/latest/user_data"), "v").expect("written");
        fs::write(dir.path().join("openstack/latest/network_data.json"), "{").expect("written");
        assert!(read(dir.path(), Kind::ConfigDrive).is_err(), "half a plan is none");
        fs::remove_file(dir.path().join("openstack/latest/network_data.json")).expect("removed");
        assert_eq!(read(dir.path(), Kind::ConfigDrive).expect("read").expect("there").user_data, "v");
    }
}
