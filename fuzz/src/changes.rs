//! How the tests of the crates run the targets on a stable Rust: their corpora, and changes of these as fuzzers make them.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

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
