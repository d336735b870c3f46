//! `calve cache verify` as a user meets it: damage is named, ends with 1, and another cache mends it.

use std::path::{Path, PathBuf};

use e2e::{Home, Ran};

use super::cache::serve;

/// Every object that holds chunks.
fn packs(cache: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![cache.join("objects/packs")]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// Flips a bit in the middle of every pack.
fn damage(cache: &Path) {
    for pack in packs(cache) {
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(pack, bytes).unwrap();
    }
}

#[test]
fn damage_is_named_and_mended_from_another_cache_near_or_far() {
    let home = Home::alone();
    let dirs = ["one", "other"].map(|name| home.path().join(name));
    let [one, other] = dirs.each_ref().map(|dir| dir.to_str().unwrap());
    let serving = dirs.each_ref().map(|dir| serve(&home, dir, &[]));
    let tokens = [one, other]
        .map(|dir| home.ok(&["cache", "token", "add", "ci", "--push", "--dir", dir]).trim().to_owned());
    let asked = |token: &str, args: &[&str]| {
        let mut command = home.command(args);
        command.env("CALVE_CACHE_TOKEN", token);
        Ran::of(command)
    };
    let app = home.app();
    let tree = Path::new(&app).parent().unwrap().parent().unwrap().to_str().unwrap();
    for (serving, token) in serving.iter().zip(&tokens) {
        let pushed = asked(token, &["push", tree, "--to", &serving.url]);
        assert_eq!(pushed.code, 0, "{pushed:?}");
    }
    assert_eq!(home.run(&["cache", "verify", "--dir", one]).code, 0);

    for repair_from in [serving[1].url.as_str(), other] {
        damage(&dirs[0]);
        let found = home.run(&["cache", "verify", "--dir", one]);
        assert_eq!(found.code, 1, "{found:?}");
        assert!(
            found.stdout.contains("damaged: ") && found.stdout.contains("broken: /nix/store/"),
            "{found:?}"
        );
        assert!(found.stderr.contains("--repair-from"), "{found:?}");
        let mended = asked(&tokens[1], &["cache", "verify", "--dir", one, "--repair-from", repair_from]);
        assert_eq!(mended.code, 0, "{mended:?}");
        assert!(mended.stdout.contains("repaired: ") && !mended.stdout.contains("damaged: "), "{mended:?}");
        let again = home.json(&["cache", "verify", "--dir", one]);
        assert_eq!(
            (&again["damage"], &again["paths_broken"]),
            (&serde_json::json!([]), &serde_json::json!([]))
        );
    }

    // A cache that may not be asked mends nothing, and says why.
    damage(&dirs[0]);
    let denied = home.run(&["cache", "verify", "--dir", one, "--repair-from", &serving[1].url]);
    assert_ne!(denied.code, 0, "{denied:?}");
}
