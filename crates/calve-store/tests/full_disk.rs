//! A full disk: said as such, and nothing half-made. The disk is a small `tmpfs`, which only root may mount.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use calve_store::{Closure, ClosurePath, Store};
use support::{Host, file, names, noise, options, run};

/// A file system of 1 MiB, until dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: PathBuf) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            eprintln!("not shown: only root may mount a small disk");
            return None;
        }
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "calve-test"]).arg(&at));
        Some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

#[test]
fn adding_to_a_full_disk_leaves_nothing() {
    let host = Host::new();
    let Some(disk) = SmallDisk::new(host.path("disk")) else { return };
    let store = Store::open_with(&disk.0, options(host.dir.path())).unwrap();
    for n in 0..3 {
        file(&host.path("in").join(format!("dir-{n}/file")), &noise(600_000 + n), 0o644);
    }
    let error = store.add(&host.path("in"), None).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert!(error.hint().unwrap().contains("free some disk space"));
    assert!(names(&disk.0).iter().all(|name| name.starts_with('.')));
    assert!(names(&disk.0.join(".tmp")).is_empty() && names(&disk.0.join(".valid")).is_empty());
    // The space is there again.
    store.add(&host.path("in/dir-0"), None).unwrap();
}

#[test]
fn an_image_on_a_full_disk_leaves_nothing() {
    let host = Host::new();
    let Some(disk) = SmallDisk::new(host.path("disk")) else { return };
    file(&host.path("in/file"), &noise(2_000_000), 0o644);
    let path = host.store.add(&host.path("in/file"), None).unwrap();
    let closure = Closure::new(vec![ClosurePath { path, host_path: host.path("in/file") }]);
    let error = host.store.image(&closure, &disk.0).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert!(names(&disk.0).is_empty());
}
