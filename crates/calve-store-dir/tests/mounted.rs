//! Stores that are mounted as NixOS mounts them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use calve_store_dir::StoreDir;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::thread::UnshareFlags;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let nix = dir.path().join("nix");
    fs::create_dir_all(nix.join("store")).expect("made");
    plain(&nix);
    // SAFETY: this program has one thread, and nothing in it knows what was mounted before.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) };
    if let Err(error) = unshared {
        println!("not shown: no mount namespace can be made: {error}");
        return;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
    mounted_over_itself(&nix);
    file_system_of_its_own(&nix);
    println!("ok");
}

/// Nothing is mounted: paths stay what they are.
fn plain(nix: &Path) {
    let store = StoreDir::open(&nix.join("store")).expect("opened");
    assert!(store.takes_from_beside());
    assert_eq!(store.path(&nix.join("store/a")), nix.join("store/a"));
}

fn mounted_over_itself(nix: &Path) {
    let at = nix.join("store");
    for flags in [MountFlags::RDONLY, MountFlags::empty()] {
        mount_bind(&at, &at).expect("bound");
        mount_remount(&at, MountFlags::BIND | flags, "").expect("mounted anew");
        fs::create_dir(nix.join("aside")).expect("beside it anybody may write");
        assert!(fs::rename(nix.join("aside"), at.join("path")).is_err(), "{flags:?}");
        let store = StoreDir::open(&at).expect("opened");
        assert!(store.takes_from_beside());
        fs::rename(store.path(&nix.join("aside")), store.path(&at.join("path"))).expect("moved in");
        fs::write(store.path(&at.join("path/file")), "text").expect("written");
        // Seen by everybody, and for everybody else it is as read-only as before.
        assert_eq!(fs::read_to_string(at.join("path/file")).expect("there"), "text");
        let refused = fs::write(at.join("other"), "").map_err(|error| error.kind());
        let expected = if flags.is_empty() { Ok(()) } else { Err(ErrorKind::ReadOnlyFilesystem) };
        assert_eq!(refused, expected);
        drop(store);
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        fs::remove_dir_all(at.join("path")).expect("removed");
    }
}

fn file_system_of_its_own(nix: &Path) {
    let at = nix.join("store");
    rustix::mount::mount("store", &at, "tmpfs", MountFlags::empty(), None).expect("mounted");
    let store = StoreDir::open(&at).expect("opened");
    assert!(!store.takes_from_beside());
    assert_eq!(store.path(&at.join("a")), at.join("a"));
    mount_remount(&at, MountFlags::BIND | MountFlags::RDONLY, "").expect("mounted anew");
    let error = StoreDir::open(&at).expect_err("nowhere to write");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(error.to_string().contains("a file system of its own"), "{error}");
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}
