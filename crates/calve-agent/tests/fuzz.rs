//! The fuzz target of store paths that come to an agent, on a stable Rust: over its corpus, over a changed one, and over arbitrary
//! bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/agent.rs"]
mod agent;
#[path = "../../../fuzz/src/changes.rs"]
mod changes;

use agent::TARGETS;
use calve_nix::{NarWriter, Sha256Hash};
use calve_wire::seed::{END, Header};
use changes::{check, check_arbitrary, check_changed, write_corpus};

/// Changes of a corpus: each makes a directory.
const CASES: u32 = 300;

/// A closure of one path, with a directory, a file and a link.
fn closure() -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new()).expect("in memory");
    nar.begin_directory(b"").expect("in order");
    nar.file(b"a", true, 3, &mut &b"abc"[..]).expect("in order");
    nar.symlink(b"b", b"a").expect("in order");
    nar.end_directory().expect("in order");
    let archive = nar.finish().expect("whole");
    let (nar_hash, nar_size) = (Sha256Hash::of(&archive).to_hex(), archive.len() as u64);
    let base_name = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a".to_owned();
    let header = Header { base_name, nar_hash, nar_size };
    [format!("{header}\n").as_bytes(), &archive, format!("{END}\n").as_bytes()].concat()
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
