//! A full disk: said as such, and nothing half-made. The disk is a small `tmpfs`, which only root may mount.

mod small_disk;
mod support;

use std::fs;
use std::sync::Arc;

use calve_store::{Closure, ClosurePath, Store};
use small_disk::SmallDisk;
use support::transfers::{pull_from, pushed, trusting};
use support::{Host, file, names, noise, options};

#[test]
fn adding_to_a_full_disk_leaves_nothing() {
    let host = Host::new();
    let Some(disk) = SmallDisk::new(host.path("disk"), 1) else { return };
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
    let Some(disk) = SmallDisk::new(host.path("disk"), 1) else { return };
    file(&host.path("in/file"), &noise(2_000_000), 0o644);
    let path = host.store.add(&host.path("in/file"), None).unwrap();
    let closure = Closure::new(vec![ClosurePath { path, host_path: host.path("in/file") }]);
    let error = host.store.image(&closure, &disk.0).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert!(names(&disk.0).is_empty());
}

#[test]
fn a_pull_to_a_full_disk_leaves_nothing_half_valid_and_goes_on_once_there_is_room() {
    let (from, chain, cache) = pushed();
    let mut to = Host::new();
    let Some(disk) = SmallDisk::new(to.path("disk"), 16) else { return };
    to.store = Arc::new(Store::open_with(&disk.0.join("store"), options(to.dir.path())).unwrap());
    let size: u64 = {
        let closure = from.store.closure(std::slice::from_ref(&chain.program)).unwrap();
        from.store.path_infos(&closure).unwrap().iter().map(|info| info.nar_size).sum()
    };
    // From room for nothing to room for nearly all, one after the other on the same store.
    for room in [0, size / 4, size / 2, size - size / 8] {
        let filler = disk.fill_but(room);
        let (pulled, _) = pull_from(&to, &[&cache], &chain.program, trusting(&[&cache]));
        let error = pulled.expect_err("there is not room for all");
        let said = calve_store::chain(&error);
        assert!(said.contains("No space left on device"), "{said}");
        assert!(error.hint().unwrap().contains("free some disk space"), "{error:?}");
        // What landed is whole.
        for path in to.store.private_paths().unwrap() {
            to.store.closure(std::slice::from_ref(&path)).unwrap();
        }
        assert!(names(&disk.0.join("store/.tmp")).is_empty());
        fs::remove_file(filler).unwrap();
    }
    pull_from(&to, &[&cache], &chain.program, trusting(&[&cache])).0.unwrap();
    assert_eq!(to.store.closure(std::slice::from_ref(&chain.program)).unwrap().paths.len(), 3);
}
