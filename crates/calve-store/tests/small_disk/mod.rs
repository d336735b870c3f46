//! A small `tmpfs`, for what happens when it is full.
#![allow(missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A file system of some MiB, until dropped.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    /// None, with a sentence, where this user may not mount.
    pub fn new(at: PathBuf, mib: u64) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}M"), "calve-test"]).arg(&at);
        let mounted = mount.output().unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            eprintln!("not shown: a small disk cannot be mounted: {}", why.trim());
            return None;
        }
        Some(Self(at))
    }

    /// Fills it but for so many bytes; gives the file to remove.
    #[allow(dead_code)] // Not every test binary fills it.
    pub fn fill_but(&self, bytes: u64) -> PathBuf {
        let free = || {
            let free = rustix::fs::statvfs(&self.0).unwrap();
            free.f_bavail * free.f_frsize
        };
        let filler = self.0.join("filler");
        fs::write(&filler, vec![1; usize::try_from(free().saturating_sub(bytes)).unwrap()]).unwrap();
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At once out of sight, and gone when the last of its files is closed: a cache in it may still be ending.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
