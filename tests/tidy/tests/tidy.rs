//! Reads the whole tree; runs nothing but `cargo metadata` and `git ls-files`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file longer than this does more than one thing.
const FILE_MAX_LINES: usize = 800;

/// What each crate may depend on, of our own. An edge that is not here is a hole in a wall.
const EDGES: &[(&str, &[&str])] = &[
    ("calve-nix", &[]),
    ("calve-pin", &[]),
    ("calve-store-dir", &[]),
    ("calve-core", &["calve-nix"]),
    ("calve-wire", &["calve-core", "calve-nix"]),
    ("calve-tree", &["calve-nix"]),
    ("calve-store", &["calve-nix", "calve-store-dir", "calve-tree"]),
    ("calve-node", &["calve-core", "calve-nix", "calve-store", "calve-wire"]),
    ("calve-provider", &["calve-core", "calve-nix", "calve-pin", "calve-wire"]),
    (
        "calve-server",
        &[
            "calve-core",
            "calve-nix",
            "calve-node",
            "calve-pin",
            "calve-provider",
            "calve-store",
            "calve-wire",
        ],
    ),
    ("calve-agent", &["calve-nix", "calve-pin", "calve-store-dir", "calve-tree", "calve-wire"]),
    (
        "calve",
        &[
            "calve-core",
            "calve-nix",
            "calve-node",
            "calve-provider",
            "calve-server",
            "calve-store",
            "calve-wire",
        ],
    ),
];

/// Libraries that a crate must stay free of.
const BANNED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("calve-core", &["tokio", "serde", "serde_json", "libc", "rustix"]),
    ("calve-nix", &["tokio", "serde", "libc", "rustix"]),
    ("calve-pin", &["tokio", "serde", "libc", "rustix"]),
    ("calve-store-dir", &["tokio", "serde", "libc"]),
    ("calve-tree", &["tokio", "serde", "libc"]),
    ("calve-wire", &["tokio", "libc", "rustix"]),
    ("calve-agent", &["axum", "redb", "rusqlite", "clap"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every tracked file with this suffix that exists, with its text.
fn files(suffix: &str) -> Vec<(String, String)> {
    output(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))
        .lines()
        .filter(|path| path.ends_with(suffix))
        .filter_map(|path| Some((path.to_owned(), std::fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

/// Package name → names of its normal dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let json = output(Command::new(env!("CARGO")).args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--offline",
    ]));
    let metadata: serde_json::Value = serde_json::from_str(&json).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let normal = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.iter().map(|p| (p["name"].as_str().unwrap().to_owned(), normal(p))).collect()
}

#[test]
fn crates_depend_only_on_what_the_architecture_allows() {
    let found = dependencies();
    let ours: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in EDGES {
        let dependencies = &found[*name];
        let edges: BTreeSet<&str> =
            dependencies.iter().map(String::as_str).filter(|d| ours.contains(d)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(edges.is_subset(&allowed), "{name} depends on {:?}", edges.difference(&allowed));
    }
    for (name, banned) in BANNED_DEPENDENCIES {
        for banned in *banned {
            assert!(!found[*name].contains(*banned), "{name} depends on {banned}");
        }
    }
    let crates = found.keys().filter(|name| name.starts_with("calve"));
    assert!(
        crates.clone().all(|name| ours.contains(name.as_str())),
        "a crate without a line in EDGES: {found:?}"
    );
}

#[test]
fn files_stay_short() {
    let long: Vec<_> = files(".rs")
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_MAX_LINES)
        .collect();
    assert!(long.is_empty(), "over {FILE_MAX_LINES} lines: {long:?}");
}

/// `needle` in code outside of tests, in files that `allowed` refuses.
fn occurrences(needle: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files(".rs") {
        if !path.starts_with("crates/")
            || path.contains("/tests/")
            || path.contains("/examples/")
            || allowed(&path)
        {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            if line.contains(needle) && !line.trim_start().starts_with("//") {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn only_the_ui_prints_and_only_mains_exit() {
    // The agent's console is a guest's screen or the run directory's log: it has no ui.
    let ui = |path: &str| {
        ["crates/calve/src/ui.rs", "crates/calve/src/ui/", "crates/calve-agent/"]
            .iter()
            .any(|p| path.starts_with(p))
    };
    for needle in ["println!(", "print!("] {
        let found = occurrences(needle, |path| ui(path) || path.ends_with("build.rs"));
        assert!(found.is_empty(), "printing outside of the ui: {found:#?}");
    }
    let found = occurrences("process::exit(", |path| path.ends_with("/main.rs"));
    assert!(found.is_empty(), "exiting outside of a main.rs: {found:#?}");
}

#[test]
fn nothing_is_left_open() {
    for needle in ["todo!(", "unimplemented!(", "#[ignore"] {
        let found = occurrences(needle, |_| false);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn every_crate_says_what_it_is_for_and_its_invariant() {
    for (name, _) in EDGES {
        let src = root().join("crates").join(name).join("src");
        let text = ["lib.rs", "main.rs"].iter().find_map(|file| std::fs::read_to_string(src.join(file)).ok());
        assert!(text.expect("a crate root").contains("*Invariant*"), "{name} does not say its invariant");
    }
}

/// What is wrong with the proofs of a row of SPECIFICATION.md: rows end in files, each followed by the names of tests in it.
/// A file of tests, a bench or the test script may stand by itself; of any other a test must be named.
fn wrong_with(row: &str) -> Option<String> {
    let proof = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
    let mut file: Option<(&str, String, bool)> = None;
    for named in proof.split('`').skip(1).step_by(2) {
        match &mut file {
            Some((path, text, proves)) if !named.contains('/') => {
                if !text.contains(&format!("fn {named}(")) {
                    return Some(format!("{path} has no test {named}"));
                }
                *proves = true;
            }
            _ => {
                if let Some((path, _, false)) = file {
                    return Some(format!("{path} is no test, and none in it is named"));
                }
                let Ok(text) = std::fs::read_to_string(root().join(named)) else {
                    return Some(format!("there is no {named}"));
                };
                let proves = named == "test" || named == "benches/run" || named.contains("tests/");
                file = Some((named, text, proves));
            }
        }
    }
    match file {
        None => Some("it has no proof".to_owned()),
        Some((path, _, false)) => Some(format!("{path} is no test, and none in it is named")),
        Some(_) => None,
    }
}

/// The rows of SPECIFICATION.md that promise something.
fn promises(specification: &str) -> impl Iterator<Item = &str> {
    specification.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise"))
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let specification = std::fs::read_to_string(root().join("SPECIFICATION.md")).unwrap();
    for row in promises(&specification) {
        if let Some(wrong) = wrong_with(row) {
            panic!("{wrong}: {row}");
        }
    }
    assert!(promises(&specification).count() > 100, "SPECIFICATION.md promises next to nothing");
    // Every table says by what its promises are held: a table without that column would hold none of them.
    let tables = specification.lines().filter(|line| line.starts_with("|---")).count();
    assert_eq!(specification.matches("\n| promise | held by |\n|---|---|\n").count(), tables);
}

#[test]
fn a_promise_without_a_proof_is_found() {
    let tidy = "`tests/tidy/tests/tidy.rs`";
    for (proof, wrong) in [
        ("", "no proof"),
        ("by our word", "no proof"),
        ("`tests/tidy/tests/nowhere.rs`", "there is no"),
        (&*format!("{tidy} `a_test_that_nobody_wrote`"), "has no test"),
        ("`crates/calve-core/src/plan.rs`", "is no test"),
        (&*format!("`crates/calve-core/src/plan.rs` {tidy}"), "is no test"),
    ] {
        let found = wrong_with(&format!("| It never fails | {proof} |"));
        assert!(found.as_ref().is_some_and(|found| found.contains(wrong)), "{proof}: {found:?}");
    }
    let held = format!("| It never fails | {tidy} `a_promise_without_a_proof_is_found` |");
    assert_eq!(wrong_with(&held), None);
}

#[test]
fn the_readme_has_exactly_two_commands_and_they_exist() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["./demo", "./test"] {
        assert_eq!(
            readme.matches(&format!("\n{command}\n")).count(),
            1,
            "{command} stands in the README once"
        );
        assert!(root().join(command).exists());
    }
}
