//! Closures over Nix's database and the private store, and what is said where they are not whole.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use calve_nix::StorePath;
use calve_store::{Store, StoreError};
use rusqlite::Connection;
use support::{Host, base, file, have, options, run};

fn bases(store: &Store, roots: &[StorePath]) -> Vec<String> {
    store.closure(roots).unwrap().paths.iter().map(|path| path.path.base_name().to_owned()).collect()
}

#[test]
fn a_closure_holds_what_is_referred_to_and_nothing_else() {
    let host = Host::new();
    let (app, lib, libc, other) = (base(4, "app"), base(3, "lib"), base(2, "libc"), base(1, "other"));
    // Circles and references to oneself are usual.
    let paths = host.nix(&[(&app, &[0, 1, 2]), (&lib, &[2]), (&libc, &[2, 1]), (&other, &[0])]);
    assert_eq!(bases(&host.store, &paths[..1]), [libc.clone(), lib.clone(), app.clone()]);
    assert_eq!(bases(&host.store, &[paths[1].clone(), paths[1].clone()]), [libc.clone(), lib.clone()]);
    file(&host.path("mine"), b"x", 0o755);
    let mine = host.store.add(&host.path("mine"), None).unwrap();
    let both = host.store.closure(&[mine.clone(), paths[2].clone()]).unwrap();
    assert_eq!(both.paths.len(), 3);
    assert_eq!(both.host_path_of(&mine).unwrap(), host.path("store").join(mine.base_name()));
    assert_eq!(both.host_path_of(&paths[2]).unwrap(), host.path("nix/store").join(&libc));
    assert!(host.store.closure(&[]).unwrap().paths.is_empty());
}

#[test]
fn what_a_closure_lacks_is_told_apart() {
    let host = Host::new();
    let unknown = StorePath::from_base_name(&base(9, "unknown")).unwrap();
    assert!(matches!(host.store.closure(std::slice::from_ref(&unknown)), Err(StoreError::Unknown { .. })));
    let (app, lib) = (base(2, "app"), base(1, "lib"));
    let paths = host.nix(&[(&app, &[1]), (&lib, &[])]);
    let error = host.store.closure(&[paths[0].clone(), unknown]).unwrap_err();
    assert!(error.to_string().contains("unknown is not valid"), "{error}");
    fs::remove_dir(host.path("nix/store").join(&lib)).unwrap();
    let error = host.store.closure(&paths[..1]).unwrap_err();
    let sentence =
        format!("the closure is incomplete: {} refers to {}, which is not there", paths[0], paths[1]);
    assert_eq!(error.to_string(), sentence);
    assert!(error.hint().unwrap().ends_with(&paths[1].to_string()));
    assert!(matches!(host.store.closure(&paths[1..]), Err(StoreError::MissingOnDisk { .. })));
    let db = Connection::open(host.path("nix/var/nix/db/db.sqlite")).unwrap();
    db.execute("DELETE FROM ValidPaths WHERE path = ?", [paths[1].to_string()]).unwrap();
    let error = host.store.closure(&paths[..1]).unwrap_err();
    assert!(matches!(&error, StoreError::Incomplete { path, .. } if *path == paths[0]), "{error}");
}

#[test]
fn a_private_path_may_refer_to_both_stores() {
    let host = Host::new();
    let paths = host.nix(&[(&base(1, "libc"), &[])]);
    file(&host.path("mine"), b"x", 0o755);
    file(&host.path("data"), b"y", 0o644);
    let mine = host.store.add(&host.path("mine"), None).unwrap();
    let data = host.store.add(&host.path("data"), None).unwrap();
    let entry = host.path("store/.valid").join(format!("{}.json", mine.base_name()));
    let refer = |references: &[&StorePath]| {
        let mut stored: serde_json::Value = serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
        stored["references"] = references.iter().map(|path| path.base_name()).collect();
        fs::write(&entry, stored.to_string()).unwrap();
    };
    refer(&[&mine, &data, &paths[0]]);
    assert_eq!(host.store.closure(std::slice::from_ref(&mine)).unwrap().paths.len(), 3);
    let missing = StorePath::from_base_name(&base(7, "missing")).unwrap();
    refer(&[&missing]);
    let error = host.store.closure(std::slice::from_ref(&mine)).unwrap_err();
    assert!(error.to_string().ends_with("missing, which is not there"), "{error}");
    host.store.remove(&data).unwrap();
    refer(&[&data]);
    assert!(matches!(host.store.closure(&[mine]), Err(StoreError::Incomplete { .. })));
}

#[test]
fn a_database_in_use_is_read_and_later_changes_are_seen() {
    let host = Host::new();
    let paths = host.nix(&[(&base(1, "old"), &[])]);
    let new = StorePath::from_base_name(&base(2, "new")).unwrap();
    let insert = |db: &Connection, id: i64, path: &StorePath| {
        fs::create_dir_all(host.path("nix/store").join(path.base_name())).unwrap();
        db.execute("INSERT INTO ValidPaths VALUES (?, ?)", (id, path.to_string())).unwrap();
    };
    let db_path = host.path("nix/var/nix/db/db.sqlite");
    assert_eq!(host.store.closure(&paths).unwrap().paths.len(), 1);
    {
        let writer = Connection::open(&db_path).unwrap();
        insert(&writer, 10, &new);
        // Still in the log beside the database.
        assert!(host.path("nix/var/nix/db/db.sqlite-wal").metadata().unwrap().len() > 0);
        assert_eq!(host.store.closure(std::slice::from_ref(&new)).unwrap().paths.len(), 1);
        let newer = StorePath::from_base_name(&base(3, "newer")).unwrap();
        insert(&writer, 11, &newer);
        assert_eq!(host.store.closure(&[newer]).unwrap().paths.len(), 1);
    }
    // Another file in its place.
    fs::remove_file(&db_path).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(host.path(&format!("nix/var/nix/db/db.sqlite{suffix}")));
    }
    host.nix(&[(&base(5, "fresh"), &[])]);
    assert!(matches!(host.store.closure(&[new]), Err(StoreError::Unknown { .. })));
}

#[test]
fn nix_store_is_asked_where_the_database_cannot_be_read() {
    let host = Host::new();
    let (app, lib) = (base(2, "app"), base(1, "lib"));
    let paths = host.nix(&[(&app, &[1]), (&lib, &[])]);
    // A log that is not empty forbids to trust the file alone, and without shared memory the log cannot be read.
    file(&host.path("nix/var/nix/db/db.sqlite-wal"), b"log", 0o644);
    std::os::unix::fs::symlink("no/such/file", host.path("nix/var/nix/db/db.sqlite-shm")).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$1$2\" in --check-validity*) shift 2; for p; do case $p in *-app) ;; *) echo $p;; esac; done;;\n\
         --query--requisites) echo {}; echo {};; *) echo no such question >&2; exit 1;; esac\n",
        paths[0], paths[1]
    );
    file(&host.path("asked"), script.as_bytes(), 0o755);
    let asking =
        calve_store::StoreOptions { nix_store_program: host.path("asked"), ..options(host.dir.path()) };
    let store = Store::open_with(&host.path("store"), asking).unwrap();
    assert_eq!(bases(&store, &paths[..1]), [lib.clone(), app]);
    let unknown = StorePath::from_base_name(&base(9, "unknown")).unwrap();
    assert!(matches!(store.closure(&[unknown]), Err(StoreError::Unknown { .. })));
    fs::remove_dir(host.path("nix/store").join(&lib)).unwrap();
    let error = store.closure(&paths[..1]).unwrap_err();
    assert!(error.to_string().ends_with("nix-store failed: no such question"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_database_of_real_nix_is_read() {
    if !have("nix-store") {
        return;
    }
    let host = Host::new();
    for name in ["a", "b"] {
        file(&host.path(name), name.as_bytes(), 0o644);
    }
    let nix = |arguments: &[&str]| {
        let mut nix = Command::new("nix-store");
        nix.env("NIX_CONFIG", "build-users-group =").arg("--store").arg(host.dir.path()).args(arguments);
        String::from_utf8(run(&mut nix).stdout).unwrap()
    };
    let added = nix(&["--add", host.path("a").to_str().unwrap(), host.path("b").to_str().unwrap()]);
    let paths: Vec<StorePath> = added.lines().map(|line| line.parse().unwrap()).collect();
    let closure = host.store.closure(&paths).unwrap();
    assert_eq!(closure.paths.len(), 2);
    assert_eq!(fs::read(closure.host_path_of(&paths[0]).unwrap()).unwrap(), b"a");
    assert_eq!(host.store.add(&host.path("a"), None).unwrap(), paths[0]);
    assert!(host.private_entries().is_empty());
    assert!(!host.path("nix/var/nix/db/db.sqlite-wal").exists(), "reading leaves nothing behind");
}

#[test]
fn a_closure_of_300_paths_comes_from_one_query() {
    let host = Host::new();
    let bases: Vec<_> = (0..3_000).map(|n| base(n, "p")).collect();
    let references: Vec<Vec<usize>> =
        (0..3_000).map(|n| (1..=8.min(n % 300)).map(|step| n - step).collect()).collect();
    let paths: Vec<_> = bases.iter().zip(&references).map(|(base, refs)| (&**base, &**refs)).collect();
    let paths = host.nix(&paths);
    // The first opens the database, later ones use the connection that was kept.
    for time in ["first", "second", "third"] {
        let start = std::time::Instant::now();
        assert_eq!(host.store.closure(&paths[1_499..1_500]).unwrap().paths.len(), 300);
        eprintln!("{time}: {:?}", start.elapsed());
    }
}

#[test]
fn opening_needs_no_permission_beyond_ones_own_directory() {
    let host = Host::new();
    host.nix(&[(&base(1, "x"), &[])]);
    let db_dir = host.path("nix/var/nix/db");
    fs::set_permissions(&db_dir, Permissions::from_mode(0o555)).unwrap();
    let path = StorePath::from_base_name(&base(1, "x")).unwrap();
    assert_eq!(host.store.closure(&[path]).unwrap().paths.len(), 1);
    fs::set_permissions(&db_dir, Permissions::from_mode(0o755)).unwrap();
}
