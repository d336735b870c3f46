//! `cargo run -p mutants [NAME…]`: plants each bug in a copy of the sources and runs the quick suite there. Ends well only if
//! each was found.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use mutants::{Mutant, all, root};

/// How one bug fared.
enum Fate {
    /// These tests failed.
    Found(String),
    /// The sources with it do not compile: it is no bug that could be made.
    Broken,
    Missed,
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |mutant: &Mutant| wanted.is_empty() || wanted.iter().any(|name| mutant.name.contains(name));
    let tree = root().join("target/mutants/tree");
    copy_sources(&tree);
    let (mut planted, mut found) = (0, 0);
    for mutant in all().iter().filter(|mutant| chosen(mutant)) {
        let began = Instant::now();
        let fate = try_out(mutant, &tree);
        let took = began.elapsed().as_secs();
        planted += 1;
        match fate {
            Fate::Found(tests) => {
                found += 1;
                println!("found   {:<28} {took:>4} s  by {tests}", mutant.name);
            }
            Fate::Broken => println!("BROKEN  {:<28} {took:>4} s  does not compile", mutant.name),
            Fate::Missed => println!("MISSED  {:<28} {took:>4} s  {}", mutant.name, mutant.what),
        }
    }
    println!("{found} of {planted} bugs were found");
    if planted > 0 && found == planted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The tracked sources; files that have not changed keep their time, so that little is built again.
fn copy_sources(tree: &Path) {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = git.output().expect("git lists the sources").stdout;
    for file in String::from_utf8(listed).expect("plain names").lines() {
        let (from, to) = (root().join(file), tree.join(file));
        let Ok(new) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|old| old == new) {
            continue;
        }
        fs::create_dir_all(to.parent().expect("it lies in the tree")).expect("a directory");
        // With its mode: some are scripts.
        fs::copy(&from, &to).expect("room for a copy");
    }
}

fn try_out(mutant: &Mutant, tree: &Path) -> Fate {
    let file = tree.join(&mutant.file);
    let whole = fs::read_to_string(&file).expect("the file is there");
    let planted = mutant.planted(&whole).unwrap_or_else(|error| panic!("{error}"));
    fs::write(&file, planted).expect("a planted bug");
    let fate = test(mutant, tree);
    fs::write(&file, whole).expect("it is taken out again");
    fate
}

fn test(mutant: &Mutant, tree: &Path) -> Fate {
    for test in &mutant.tests {
        if !cargo(tree, &["test", "--quiet", "--no-run"], test) {
            return Fate::Broken;
        }
        if !cargo(tree, &["test", "--quiet"], test) {
            return Fate::Found(test.clone());
        }
    }
    Fate::Missed
}

fn cargo(tree: &Path, first: &[&str], rest: &str) -> bool {
    let target = std::env::var_os("CALVE_MUTANTS_TARGET");
    let target = target.unwrap_or_else(|| root().join("target/mutants/target").into_os_string());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(first).args(rest.split_whitespace()).current_dir(tree).env("CARGO_TARGET_DIR", target);
    // What is planted may leave things unused.
    command.env("CARGO_TERM_COLOR", "never").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("cargo runs").success()
}
