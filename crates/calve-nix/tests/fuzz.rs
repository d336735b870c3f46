//! The fuzz targets on a stable Rust: over their corpora, over changed corpora, and over arbitrary bytes.
#![allow(missing_docs)]

mod support;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use targets::{TARGETS, run};

/// Each target with each file of its corpus.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let files = |name: &&'static str| {
        let (name, dir) = (*name, fs::read_dir(root.join(name)).unwrap());
        dir.map(move |file| (name, fs::read(file.unwrap().path()).unwrap())).collect::<Vec<_>>()
    };
    TARGETS.iter().map(|(name, _)| name).flat_map(files).collect()
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    for (name, _) in TARGETS {
        assert!(corpus().iter().any(|(target, _)| target == name), "{name} has no corpus");
        assert!(programs.join(format!("{name}.rs")).exists(), "{name} has no program");
    }
    corpus().iter().for_each(|(target, bytes)| run(target, bytes));
}

/// A change as fuzzers make them: a byte set, a piece removed, doubled or put in.
#[derive(Debug, Clone)]
enum Change {
    Set(u8),
    Remove(usize),
    Double(usize),
    Insert(Vec<u8>),
}

fn change() -> impl Strategy<Value = (prop::sample::Index, Change)> {
    let change = prop_oneof![
        any::<u8>().prop_map(Change::Set),
        (1..24usize).prop_map(Change::Remove),
        (1..64usize).prop_map(Change::Double),
        prop::collection::vec(any::<u8>(), 1..12).prop_map(Change::Insert),
    ];
    (any::<prop::sample::Index>(), change)
}

fn changed(mut bytes: Vec<u8>, changes: Vec<(prop::sample::Index, Change)>) -> Vec<u8> {
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

proptest! {
    #![proptest_config(support::cases(3000))]

    #[test]
    fn changed_corpora_do_no_harm(
        (target, bytes) in prop::sample::select(corpus()),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        run(target, &changed(bytes, changes));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        TARGETS.iter().for_each(|(name, _)| run(name, &bytes));
    }

    #[test]
    fn arbitrary_texts_do_no_harm(text in "[ -~\n\u{0}-\u{ff}]{0,120}") {
        TARGETS.iter().for_each(|(name, _)| run(name, text.as_bytes()));
    }
}
