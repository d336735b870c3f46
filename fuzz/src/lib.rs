//! Fuzz targets of the formats: `targets` says what they do, Cargo.toml how to run them.

use std::io::{self, Read};

pub mod targets;

pub use targets::run;

/// Runs the target called `name` once, on standard input: what a target's program does without libFuzzer.
pub fn run_on_stdin(name: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    run(name, &bytes);
    Ok(())
}
