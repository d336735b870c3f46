//! How the tests of the crates run the targets on a stable Rust: their corpora, and changes of these as fuzzers make them.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// The inputs of a target, each with its name.
pub type Input = (&'static str, Vec<u8>);

/// A target: its name and what it does with an input.
type Target = (&'static str, fn(&[u8]));

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Each target with each file of its corpus.
pub fn corpus(targets: &[Target]) -> Vec<Input> {
    let files = |name: &'static str| {
        let dir =
            fs::read_dir(root().join("corpus").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        dir.map(move |file| (name, fs::read(file.unwrap().path()).unwrap())).collect::<Vec<_>>()
    };
    targets.iter().flat_map(|(name, _)| files(name)).collect()
}

/// Every target has a corpus and a program, and its corpus does no harm.
pub fn check(targets: &[Target]) {
    for (name, target) in targets {
        let corpus = corpus(&[(name, *target)]);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        assert!(root().join(format!("fuzz_targets/{name}.rs")).exists(), "{name} has no program");
        corpus.iter().for_each(|(_, bytes)| target(bytes));
    }
}

/// Writes the first inputs of a corpus, where `CALVE_WRITE_EXAMPLES` asks for it.
#[allow(dead_code)] // Not every crate's inputs are made by a program.
pub fn write_corpus(inputs: &[(&str, &str, Vec<u8>)]) {
    if std::env::var_os("CALVE_WRITE_EXAMPLES").is_some() {
        for (target, name, bytes) in inputs {
            let dir = root().join("corpus").join(target);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// Runs targets on so many changed files of their corpora.
pub fn check_changed(targets: &[Target], cases: u32) {
    let changes = prop::collection::vec(change(), 1..4);
    check_all(cases, &(prop::sample::select(corpus(targets)), changes), |((name, bytes), changes)| {
        let bytes = changed(bytes, changes);
        targets.iter().filter(|(known, _)| *known == name).for_each(|(_, target)| target(&bytes));
    });
}

/// Runs every target on so many inputs that are anything at all.
pub fn check_arbitrary(targets: &[Target], cases: u32) {
    check_all(cases, &prop::collection::vec(any::<u8>(), 0..400), |bytes| {
        targets.iter().for_each(|(_, target)| target(&bytes));
    });
}

/// Runs a check on so many inputs; a failing one is printed, not kept in a file.
pub fn check_all<S: Strategy>(cases: u32, inputs: &S, check: impl Fn(S::Value)) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    let checked = TestRunner::new(config).run(inputs, |input| {
        check(input);
        Ok(())
    });
    checked.unwrap_or_else(|failed| panic!("{failed}"));
}

/// A change as fuzzers make them: a byte set, a piece removed, doubled or put in.
#[derive(Debug, Clone)]
pub enum Change {
    Set(u8),
    Remove(usize),
    Double(usize),
    Insert(Vec<u8>),
}

/// One change and where it is made.
pub fn change() -> impl Strategy<Value = (prop::sample::Index, Change)> {
    let change = prop_oneof![
        any::<u8>().prop_map(Change::Set),
        (1..24usize).prop_map(Change::Remove),
        (1..64usize).prop_map(Change::Double),
        prop::collection::vec(any::<u8>(), 1..12).prop_map(Change::Insert),
    ];
    (any::<prop::sample::Index>(), change)
}

/// The bytes with these changes, one after the other.
pub fn changed(mut bytes: Vec<u8>, changes: Vec<(prop::sample::Index, Change)>) -> Vec<u8> {
    for (at, change) in changes {
        let at = at.index(bytes.len() + 1);
        let end = |length: usize| (at + length).min(bytes.len());
        match change {
            Change::Set(byte) => bytes.iter_mut().skip(at).take(1).for_each(|place| *place = byte),
            Change::Remove(length) => drop(bytes.drain(at..end(length))),
            Change::Double(length) => {
                let piece = bytes[at..end(length)].to_vec();
                bytes.splice(at..at, piece);
            }
            Change::Insert(piece) => drop(bytes.splice(at..at, piece)),
        }
    }
    bytes
}
