//! What users type, as places in a store.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_store::{Located, StoreError};
use support::{Host, base, file};

/// A host whose Nix store holds an environment of links, a program with two names, and a link as store path.
fn host() -> (Host, Vec<StorePath>) {
    let host = Host::new();
    let (env, hello, link) = (base(3, "env"), base(2, "hello"), base(1, "link"));
    let paths = host.nix(&[(&env, &[1]), (&hello, &[]), (&link, &[1])]);
    let place = |path: &StorePath| host.path("nix/store").join(path.base_name());
    file(&place(&paths[1]).join("bin/hello"), b"x", 0o555);
    symlink("hello", place(&paths[1]).join("bin/hi")).unwrap();
    symlink(format!("{}/bin", paths[1]), place(&paths[0]).join("bin")).unwrap();
    symlink(format!("../{hello}/bin/hello"), place(&paths[0]).join("sibling")).unwrap();
    symlink("/etc/passwd", place(&paths[0]).join("out")).unwrap();
    symlink("loop", place(&paths[0]).join("loop")).unwrap();
    fs::remove_dir(place(&paths[2])).unwrap();
    symlink(paths[1].to_string(), place(&paths[2])).unwrap();
    symlink(paths[0].to_string(), host.path("result")).unwrap();
    symlink("result", host.path("again")).unwrap();
    (host, paths)
}

/// The logical names at which a path enters the store and at which it ends.
fn located(host: &Host, typed: impl AsRef<Path>) -> (String, String) {
    match host.store.locate(typed.as_ref()).unwrap() {
        Located::InStore { entry, target, host_path } => {
            let inside = target.rest.strip_prefix("/").unwrap_or(&target.rest);
            assert_eq!(host_path, host.path("nix/store").join(target.path.base_name()).join(inside));
            (entry.to_string(), target.to_string())
        }
        Located::Outside(path) => panic!("outside: {}", path.display()),
    }
}

#[test]
fn links_lead_to_where_a_store_is_entered_and_to_the_file() {
    let (host, paths) = host();
    let [env, hello, link] = [0, 1, 2].map(|i| paths[i].to_string());
    let program = format!("{hello}/bin/hello");
    let same = |path: &str| (path.to_owned(), path.to_owned());
    assert_eq!(located(&host, host.path("result")), same(&env));
    assert_eq!(located(&host, host.path("./again/")), same(&env));
    assert_eq!(located(&host, &env), same(&env));
    assert_eq!(located(&host, host.path("again/bin/hi")), (format!("{env}/bin/hi"), program.clone()));
    assert_eq!(located(&host, format!("{env}/sibling")), (format!("{env}/sibling"), program.clone()));
    assert_eq!(located(&host, format!("{link}/bin/hello")), (format!("{link}/bin/hello"), program.clone()));
    // The place in the host's own directory of the Nix store means the same.
    let place = host.path("nix/store").join(paths[1].base_name()).join("bin/hi");
    assert_eq!(located(&host, place), (format!("{hello}/bin/hi"), program.clone()));
    // `..` means nothing before links are followed.
    assert_eq!(located(&host, host.path("result/bin/../bin/hello")), same(&program));
    assert_eq!(located(&host, format!("/nix/store/.././store/{}", paths[0].base_name())), same(&env));
}

#[test]
fn a_private_path_is_found_under_its_logical_name() {
    let host = Host::new();
    file(&host.path("app/bin/x"), b"x", 0o755);
    let added = host.store.add(&host.path("app"), None).unwrap();
    let program = format!("{added}/bin/x");
    for typed in [PathBuf::from(&program), host.path("store").join(added.base_name()).join("bin/x")] {
        let Located::InStore { entry, target, host_path } = host.store.locate(&typed).unwrap() else {
            panic!()
        };
        assert_eq!((entry.to_string(), &entry), (program.clone(), &target));
        assert_eq!(host_path, host.path("store").join(added.base_name()).join("bin/x"));
    }
}

#[test]
fn what_lies_in_no_store_is_said() {
    let (host, _) = host();
    file(&host.path("here/file"), b"x", 0o644);
    symlink("here", host.path("there")).unwrap();
    let outside = host.store.locate(&host.path("there/../there/file")).unwrap();
    assert_eq!(outside, Located::Outside(host.path("here/file").canonicalize().unwrap()));
    assert!(matches!(host.store.locate(Path::new(".")), Ok(Located::Outside(_))));
}

#[test]
fn what_leads_nowhere_is_told_apart() {
    let (host, paths) = host();
    let env = paths[0].to_string();
    let unknown = format!("/nix/store/{}/bin/x", base(9, "unknown"));
    assert!(matches!(host.store.locate(Path::new(&unknown)), Err(StoreError::Unknown { .. })));
    for missing in [format!("{env}/no"), format!("{env}/bin/hello/x"), "/no/such/file".to_owned()] {
        assert!(matches!(host.store.locate(Path::new(&missing)), Err(StoreError::Io { .. })), "{missing}");
    }
    let error = host.store.locate(Path::new(&format!("{env}/loop"))).unwrap_err();
    assert!(matches!(error, StoreError::TooManyLinks { .. }));
    let error = host.store.locate(Path::new(&format!("{env}/out"))).unwrap_err();
    assert_eq!(error.to_string(), format!("{env}/out leads out of the store, to /etc/passwd"));
}
