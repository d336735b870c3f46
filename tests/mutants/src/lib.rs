//! Bugs to plant: each a file of `bugs/`, which says what the bug is, where it goes, and which tests are to find it.
//!
//! ```text
//!  # A record is closed though no list has confirmed that its machine is gone.
//!  file crates/calve-core/src/plan/confirm.rs
//!  test -p calve-core --lib          (optional, several: in place of the quick suite)
//!  -        Seen::Unknown => draft.wait(On::List, None),
//!  +        Seen::Unknown => draft.state(closed),
//! ```
//! Of the file, the lines behind `-` are replaced by those behind `+`; they must stand there exactly once.

use std::fs;
use std::path::{Path, PathBuf};

/// What is run where a bug does not say otherwise: the first that fails has found it.
pub const QUICK: &[&str] =
    &["-p calve-core --lib", "-p calve-server --lib reconcile", "-p sim --test seeds --test effects"];

/// A bug to plant.
#[derive(Debug)]
pub struct Mutant {
    /// What its file is called.
    pub name: String,
    /// What the bug is, in one sentence.
    pub what: String,
    /// The file that it goes into, below the root.
    pub file: String,
    /// Arguments of `cargo test`, each a run.
    pub tests: Vec<String>,
    from: String,
    to: String,
}

/// The root of the sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the sources are there")
}

/// Every bug, in the order of their names.
pub fn all() -> Vec<Mutant> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bugs");
    let files = fs::read_dir(&dir).expect("a directory of bugs");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| Mutant::read(file)).collect()
}

impl Mutant {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a bug is text");
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let lines = |prefix: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
        };
        let whole = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let mut tests = lines("test ");
        if tests.is_empty() {
            tests = QUICK.iter().map(|test| (*test).to_owned()).collect();
        }
        let one = |mut lines: Vec<String>, what: &str| {
            assert_eq!(lines.len(), 1, "{name} has one line for {what}");
            lines.remove(0)
        };
        let (what, file) = (one(lines("# "), "what it is"), one(lines("file "), "its file"));
        Self { name, what, file, tests, from: whole(lines("-")), to: whole(lines("+")) }
    }

    /// The file's text with the bug in it; an error where the lines do not stand there exactly once.
    pub fn planted(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.from).count() {
            _ if self.from.is_empty() => Err(format!("{} says no lines to replace", self.name)),
            1 => Ok(text.replacen(&self.from, &self.to, 1)),
            n => Err(format!("{}: its lines stand {n} times in {}", self.name, self.file)),
        }
    }
}
