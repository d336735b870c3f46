//! The fuzz targets on a stable Rust: over their corpora, over changed corpora, and over arbitrary bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use changes::{check, check_all, check_arbitrary, check_changed};
use targets::TARGETS;

#[test]
fn every_target_has_a_corpus_and_a_program() {
    check(TARGETS);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, 3000);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, 3000);
}

#[test]
fn arbitrary_texts_do_no_harm() {
    check_all(3000, &"[ -~\n\u{0}-\u{ff}]{0,120}", |text| {
        TARGETS.iter().for_each(|(_, target)| target(text.as_bytes()));
    });
}
