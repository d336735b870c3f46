//! Fuzz targets: of the formats in `targets`, of what caches store and send in `stored`, of caches behind HTTP in `served`, of
//! what agents, clients and the state send in `wire`, of what providers say in `providers`, of what agents take in `agent`.
//! Cargo.toml says how to run them.

use std::io::{self, Read};

pub mod agent;
pub mod providers;
pub mod served;
pub mod stored;
pub mod targets;
pub mod wire;

/// Does what the target called `name` does.
pub fn run(name: &str, bytes: &[u8]) {
    let all = [
        targets::TARGETS,
        stored::TARGETS,
        served::TARGETS,
        wire::TARGETS,
        providers::TARGETS,
        agent::TARGETS,
    ]
    .concat();
    let (_, target) = all.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(bytes);
}

/// Runs the target called `name` once, on standard input: what a target's program does without libFuzzer.
pub fn run_on_stdin(name: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    run(name, &bytes);
    Ok(())
}
