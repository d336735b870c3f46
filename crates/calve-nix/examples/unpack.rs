//! Measures the reading of archives, without hashing: `cargo run --release -p calve-nix --example unpack FILE.nar ...`.

use std::io::{self, BufReader, Write};
use std::time::Instant;

use calve_nix::{NarEvent, NarReader};

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 128 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let (mut nodes, begin) = (0u64, Instant::now());
        let mut nar = NarReader::new(BufReader::with_capacity(BUFFER_BYTES, std::fs::File::open(&path)?));
        while let Some(event) = nar.next_event()? {
            nodes += 1;
            if matches!(event, NarEvent::File { .. }) {
                io::copy(&mut nar.contents(), &mut io::sink())?;
            }
        }
        let (bytes, seconds) = (nar.finish()?, begin.elapsed().as_secs_f64());
        let speed = bytes as f64 / seconds / 1e9;
        writeln!(io::stdout(), "{path}: {nodes} nodes, {bytes} bytes, {seconds:.3} s, {speed:.2} GB/s")?;
    }
    Ok(())
}
