//! Closures pulled into a real Nix store, which must agree with all of it.

mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;

use calve_store::pull::PullOptions;
use calve_store::push::PushOptions;
use calve_store::{Destination, Store, StoreOptions};
use support::memory::Memory;
use support::transfers::{pull_from, push_to, pushed, trusting};
use support::{Host, file, have, run};

/// A host with a Nix of its own; its `nix-store` speaks of no other.
fn with_nix() -> Host {
    let mut host = Host::new();
    let root = host.path("root");
    let script = format!(
        "#!/bin/sh\nNIX_CONFIG='build-users-group =' exec nix-store --store '{}' \"$@\"\n",
        root.display()
    );
    file(&host.path("nix-store"), script.as_bytes(), 0o755);
    run(Command::new(host.path("nix-store")).arg("--init"));
    fs::create_dir_all(root.join("nix/store")).unwrap();
    let options = StoreOptions {
        nix_db: root.join("nix/var/nix/db/db.sqlite"),
        nix_store_dir: root.join("nix/store"),
        nix_store_program: host.path("nix-store"),
    };
    host.store = Arc::new(Store::open_with(&host.path("store"), options).unwrap());
    host
}

fn nix(host: &Host, arguments: &[&str]) -> String {
    let output = run(Command::new(host.path("nix-store")).args(arguments));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn nix_agrees_with_what_was_pulled_into_its_store() {
    if !have("nix-store") {
        return;
    }
    let (from, chain, cache) = pushed();
    let to = with_nix();
    assert_eq!(to.store.destination(), Destination::Nix);
    let options = PullOptions { destination: None, ..trusting(&[&cache]) };
    assert_eq!(pull_from(&to, &[&cache], &chain.program, options.clone()).0.unwrap().len(), 3);
    let paths = [&chain.library, &chain.middle, &chain.program].map(ToString::to_string);
    for path in &paths {
        nix(&to, &["--verify-path", path]);
    }
    nix(&to, &["--verify", "--check-contents"]);
    assert_eq!(
        nix(&to, &["--query", "--references", &paths[1]]),
        format!("{}\n{}", paths[0], paths[1]).lines().collect::<Vec<_>>().join("\n")
    );
    assert_eq!(nix(&to, &["--query", "--deriver", &paths[2]]), format!("{}.drv", paths[2]));
    let leftovers = fs::read_dir(to.path("root/nix/var/nix/calve/tmp")).unwrap().count();
    let locks = fs::read_dir(to.path("root/nix/store")).unwrap().flatten();
    let locks = locks.filter(|entry| entry.file_name().to_string_lossy().ends_with(".lock")).count();
    assert_eq!((leftovers, locks), (0, 0));
    assert!(pull_from(&to, &[&cache], &chain.program, options).0.unwrap().is_empty());
    // From there it goes on as it came, signatures included.
    let closure = to.store.closure(std::slice::from_ref(&chain.program)).unwrap();
    let infos = to.store.path_infos(&closure).unwrap();
    let manifests = cache.manifests.lock().unwrap().clone();
    assert!(infos.iter().all(|info| manifests[&info.path].info.signatures == info.signatures));
    let other = Arc::new(Memory::new("other"));
    push_to(&to, &other, &chain.program, PushOptions::default());
    let again = Host::new();
    pull_from(&again, &[&other], &chain.program, trusting(&[&cache])).0.unwrap();
    drop(from);
}

#[test]
fn a_tree_that_nix_does_not_know_is_replaced() {
    if !have("nix-store") {
        return;
    }
    let (_from, chain, cache) = pushed();
    let to = with_nix();
    let place = to.path("root/nix/store").join(chain.library.base_name());
    file(&place.join("half"), b"made", 0o444);
    let options = PullOptions { destination: Some(Destination::Nix), ..trusting(&[&cache]) };
    pull_from(&to, &[&cache], &chain.program, options).0.unwrap();
    nix(&to, &["--verify-path", &chain.library.to_string()]);
    assert!(!place.join("half").exists());
}

/// As NixOS has its store: mounted over itself, read-only. The test runs itself again where it may mount.
#[test]
fn a_store_that_is_mounted_read_only_takes_paths() {
    if !have("nix-store") || !e2e::may_mount("a_store_that_is_mounted_read_only_takes_paths") {
        return;
    }
    let (_from, chain, cache) = pushed();
    let to = with_nix();
    let dir = to.path("root/nix/store");
    // What nobody knows lies there already, and is in the way.
    file(&dir.join(chain.library.base_name()).join("half"), b"made", 0o444);
    run(Command::new("mount").arg("--bind").args([&dir, &dir]));
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&dir));
    assert!(fs::write(dir.join("file"), "").is_err());
    assert_eq!(to.store.destination(), Destination::Nix);
    let options = PullOptions { destination: None, ..trusting(&[&cache]) };
    assert_eq!(pull_from(&to, &[&cache], &chain.program, options).0.unwrap().len(), 3);
    for path in [&chain.library, &chain.middle, &chain.program] {
        nix(&to, &["--verify-path", &path.to_string()]);
    }
    let mut names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.all(|name| !name.to_string_lossy().ends_with(".lock")));
}
