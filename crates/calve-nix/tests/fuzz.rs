//! The fuzz targets on a stable Rust: over their corpora, over changed corpora, and over arbitrary bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
mod support;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use changes::{change, changed, check, corpus};
use proptest::prelude::*;
use targets::{TARGETS, run};

#[test]
fn every_target_has_a_corpus_and_a_program() {
    check(TARGETS);
}

proptest! {
    #![proptest_config(support::cases(3000))]

    #[test]
    fn changed_corpora_do_no_harm(
        (target, bytes) in prop::sample::select(corpus(TARGETS)),
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
