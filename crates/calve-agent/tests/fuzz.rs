//! The fuzz target of store paths that come to an agent, on a stable Rust: over its corpus, over a changed one, and over arbitrary
//! bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/agent.rs"]
mod agent;
#[path = "../../../fuzz/src/changes.rs"]
mod changes;

use agent::TARGETS;
use calve_nix::{NarWriter, Sha256Hash};
use calve_wire::seed::{END, HashAt, Header, Part};
use changes::{check, check_arbitrary, check_changed, write_corpus};

/// Changes of a corpus: each makes a directory.
const CASES: u32 = 300;

/// A closure of two paths with a directory, a file and a link; the second is a copy of the first, but for three characters.
fn closure() -> Vec<u8> {
    let archive = |contents: &[u8]| {
        let mut nar = NarWriter::new(Vec::new()).expect("in memory");
        nar.begin_directory(b"").expect("in order");
        nar.file(b"a", true, contents.len() as u64, &mut &*contents).expect("in order");
        nar.symlink(b"b", b"a").expect("in order");
        nar.end_directory().expect("in order");
        nar.finish().expect("whole")
    };
    let header = |base_name: &str, archive: &[u8]| {
        let (nar_hash, nar_size) = (Sha256Hash::of(archive).to_hex(), archive.len() as u64);
        Header { base_name: base_name.to_owned(), nar_hash, nar_size }
    };
    let (first, second) = (archive(b"abc"), archive(b"xyz"));
    let from = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a".to_owned();
    let at = first.windows(3).position(|three| three == b"abc").expect("its contents") as u32;
    let (begun, len) =
        (format!("{}\n{}\n", header(&from, &first), Part::Bytes(first.len() as u32)), first.len());
    let copy = Part::Copy { from, at: 0, len: len as u32, hashes: 1 };
    let hash = HashAt { at, hash: "xyz".to_owned() };
    let header = header("1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b", &second);
    [begun.as_bytes(), &first, format!("{header}\n{copy}\n{hash}\n{END}\n").as_bytes()].concat()
}

#[test]
fn a_closure_is_taken() {
    let store = tempfile::tempdir().expect("a directory");
    calve_agent::seed::receive_plain(store.path(), ".under-way-", &closure()[..]).expect("it is whole");
    let second = store.path().join("1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b/a");
    assert_eq!(std::fs::read(second).expect("there"), b"xyz");
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    write_corpus(&[("seed", "one", closure())]);
    check(TARGETS);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, CASES);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, CASES);
}
