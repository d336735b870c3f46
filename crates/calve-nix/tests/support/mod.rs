//! What the tests of this crate share.
#![allow(dead_code, missing_docs)] // Every test binary uses its own part.

pub mod info;
pub mod nix;
pub mod tree;

use proptest::test_runner::Config;

/// A property test of this many cases; failing cases are printed, not kept in files.
pub fn cases(cases: u32) -> Config {
    Config { failure_persistence: None, ..Config::with_cases(cases) }
}
