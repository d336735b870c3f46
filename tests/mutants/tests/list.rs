//! The list of bugs fits the sources.

use mutants::{all, root};

#[test]
fn every_bug_can_be_planted() {
    let bugs = all();
    assert!(bugs.len() >= 20, "{} bugs", bugs.len());
    for bug in bugs {
        let text =
            std::fs::read_to_string(root().join(&bug.file)).unwrap_or_else(|e| panic!("{}: {e}", bug.file));
        let planted = bug.planted(&text).unwrap_or_else(|error| panic!("{error}"));
        assert!(planted != text && !bug.what.is_empty(), "{} changes nothing", bug.name);
    }
}
