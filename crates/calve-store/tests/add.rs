//! Adding: the path that Nix gives, the permissions of a store, nothing half-made.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use calve_store::{StoreError, archive};
use support::{Host, file, have, listing, names, odd_tree, run};

/// What `nix-store --add` says, with a store of its own.
fn nix_add(path: &Path) -> String {
    let store = tempfile::tempdir().unwrap();
    let mut nix = Command::new("nix-store");
    nix.env("NIX_CONFIG", "build-users-group =").arg("--store").arg(store.path()).arg("--add").arg(path);
    String::from_utf8(run(&mut nix).stdout).unwrap().trim().to_owned()
}

#[test]
fn a_path_is_the_one_that_nix_gives() {
    let host = Host::new();
    // `nix-store --add` of Nix 2.8.
    file(&host.path("hello"), b"hi\n", 0o644);
    let added = host.store.add(&host.path("hello"), Some("f")).unwrap();
    assert_eq!(added.to_string(), "/nix/store/ab3li50xq0nl4q5lxdyinb8w8y13my9s-f");
    file(&host.path("tree/bin/run"), b"#!/bin/sh\n", 0o755);
    file(&host.path("tree/empty"), b"", 0o600);
    symlink("bin/run", host.path("tree/link")).unwrap();
    let added = host.store.add(&host.path("tree"), None).unwrap();
    assert_eq!(added.to_string(), "/nix/store/pdk55gm2dinbbzlvy25fzhgjjqjqwwzb-tree");
}

#[test]
fn odd_trees_get_the_path_that_nix_gives() {
    if !have("nix-store") {
        return;
    }
    let host = Host::new();
    odd_tree(&host.path("odd"));
    fs::create_dir(host.path("nothing")).unwrap();
    file(&host.path("empty+file?=_"), b"", 0o755);
    for name in ["odd", "nothing", "empty+file?=_", "odd/size-400001"] {
        let added = host.store.add(&host.path(name), None).unwrap();
        assert_eq!(added.to_string(), nix_add(&host.path(name)), "{name}");
    }
    let dump = run(Command::new("nix-store").arg("--dump").arg(host.path("odd"))).stdout;
    assert!(archive::write_nar(&host.path("odd"), Vec::new()).unwrap() == dump, "archives differ");
}

#[test]
fn a_copy_is_equal_and_sealed() {
    let host = Host::new();
    odd_tree(&host.path("odd"));
    let added = host.store.add(&host.path("odd"), None).unwrap();
    let closure = host.store.closure(std::slice::from_ref(&added)).unwrap();
    let place = closure.host_path_of(&added).unwrap();
    assert_eq!(listing(place), listing(&host.path("odd")));
    for (name, kind, _) in listing(place) {
        let metadata = place.join(&name).symlink_metadata().unwrap();
        let mode = match kind.as_str() {
            "link" => 0o777,
            "file" => 0o444,
            _ => 0o555,
        };
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (mode, 1), "{name:?}");
    }
    assert!(names(&host.path("store/.tmp")).is_empty());
}

#[test]
fn a_link_that_a_user_typed_is_followed() {
    let host = Host::new();
    file(&host.path("real"), b"x", 0o755);
    symlink("real", host.path("link")).unwrap();
    let added = host.store.add(&host.path("link"), None).unwrap();
    assert_eq!(added, host.store.add(&host.path("real"), None).unwrap());
    assert_eq!(added.name(), "real");
}

#[test]
fn what_is_valid_is_not_copied_again() {
    let mut host = Host::new();
    file(&host.path("app"), b"x", 0o755);
    let added = host.store.add(&host.path("app"), None).unwrap();
    let place = host.path("store").join(added.base_name());
    let inode = place.metadata().unwrap().ino();
    assert_eq!(host.store.add(&host.path("app"), None).unwrap(), added);
    host.reopen();
    assert_eq!(host.store.add(&host.path("app"), None).unwrap(), added);
    assert_eq!(place.metadata().unwrap().ino(), inode);
    // What Nix holds already needs no copy here.
    host.store.remove(&added).unwrap();
    host.store.remove(&added).unwrap();
    host.nix(&[(added.base_name(), &[])]);
    assert_eq!(host.store.add(&host.path("app"), None).unwrap(), added);
    assert!(host.private_entries().is_empty());
    // Unless its files are gone.
    fs::remove_dir(host.path("nix/store").join(added.base_name())).unwrap();
    assert_eq!(host.store.add(&host.path("app"), None).unwrap(), added);
    assert_eq!(host.private_entries(), [added.base_name()]);
}

#[test]
fn leftovers_of_a_crash_go_at_the_next_opening() {
    let mut host = Host::new();
    file(&host.path("store/.tmp/dead/tree/a/b"), b"x", 0o444);
    fs::set_permissions(host.path("store/.tmp/dead/tree/a"), Permissions::from_mode(0o555)).unwrap();
    // In place, but not registered yet.
    let cut_off = format!("{}-cut-off", "0".repeat(32));
    file(&host.path("store").join(&cut_off).join("bin/x"), b"x", 0o555);
    fs::set_permissions(host.path("store").join(&cut_off), Permissions::from_mode(0o555)).unwrap();
    host.reopen();
    assert!(names(&host.path("store/.tmp")).is_empty());
    assert!(host.private_entries().is_empty());
}

#[test]
fn many_adders_at_once_agree() {
    let host = Host::new();
    odd_tree(&host.path("odd"));
    let added: Vec<_> = std::thread::scope(|scope| {
        let adder = || {
            // Each with a store of its own, as processes have.
            let store = calve_store::Store::open_with(&host.path("store"), support::options(host.dir.path()))
                .unwrap();
            store.add(&host.path("odd"), None).unwrap()
        };
        let adders: Vec<_> = (0..8).map(|_| scope.spawn(adder)).collect();
        adders.into_iter().map(|adder| adder.join().unwrap()).collect()
    });
    assert!(added.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(host.private_entries(), [added[0].base_name()]);
    assert_eq!(host.store.private_paths().unwrap(), [added[0].clone()]);
    assert!(names(&host.path("store/.tmp")).is_empty());
}

#[test]
fn what_cannot_be_added_is_named_and_leaves_nothing() {
    let host = Host::new();
    fs::create_dir(host.path("dir")).unwrap();
    file(&host.path("dir/a"), b"x", 0o644);
    let _socket = UnixListener::bind(host.path("dir/z")).unwrap();
    let error = host.store.add(&host.path("dir"), None).unwrap_err();
    assert!(error.to_string().contains("dir/z is a socket"), "{error}");
    file(&host.path("a b"), b"x", 0o644);
    let error = host.store.add(&host.path("a b"), None).unwrap_err();
    assert!(matches!(error, StoreError::BadName { .. }) && error.hint().is_some());
    let error = host.store.add(&host.path("nowhere"), None).unwrap_err();
    assert!(error.to_string().starts_with("cannot read") && error.hint().is_some());
    let error = host.store.add(host.dir.path(), Some("all")).unwrap_err();
    assert!(matches!(error, StoreError::HoldsStore { .. }));
    assert!(host.private_entries().is_empty());
    assert!(names(&host.path("store/.tmp")).is_empty());
}
