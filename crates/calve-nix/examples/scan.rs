//! Measures the search for references: `cargo run --release -p calve-nix --example scan [FILE ...]`.
//!
//! Without files it makes up random bytes, English-like text, hexadecimal digits, zeros and one endless run of base32.

use std::io::{self, Write};
use std::time::Duration;

use calve_nix::references::{Needles, Rewriter, Scanner};

/// Bytes of each made-up input.
const INPUT_BYTES: usize = 64 << 20;
/// Bytes that are fed at a time, as the engine reads.
const PIECE_BYTES: usize = 128 << 10;
/// References that are looked for, as many as a large system has paths.
const NEEDLES: u64 = 1000;

fn main() -> io::Result<()> {
    let mut random = Random(1);
    let parts =
        (0..NEEDLES).map(|_| std::array::from_fn(|_| random.pick(b"0123456789abcdfghijklmnpqrsvwxyz")));
    let needles = Needles::new(parts).expect("made of base32");
    let files: Vec<String> = std::env::args().skip(1).collect();
    for file in &files {
        measure(&needles, file, &std::fs::read(file)?)?;
    }
    if files.is_empty() {
        let mut made = |name: &str, alphabet: &[u8]| {
            let bytes: Vec<u8> = (0..INPUT_BYTES).map(|_| random.pick(alphabet)).collect();
            measure(&needles, name, &bytes)
        };
        let all: Vec<u8> = (0..=255).collect();
        made("random", &all)?;
        made("text", b"eeetttaaooiinnsshhrrdlcumwfgypbvk     \n")?;
        made("hexadecimal", b"0123456789abcdef")?;
        made("zeros", b"\0")?;
        made("base32", b"0123456789abcdfghijklmnpqrsvwxyz")?;
    }
    Ok(())
}

fn measure(needles: &Needles, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut found = 0;
    let begin = cpu_time()?;
    let mut scanner = Scanner::new(needles);
    for piece in bytes.chunks(PIECE_BYTES) {
        scanner.feed(piece, |_, _| found += 1);
    }
    let scanned = cpu_time()? - begin;
    let begin = cpu_time()?;
    let mut rewriter = Rewriter::new(needles, io::sink(), |_, _| [b'0'; 32]);
    rewriter.write_all(bytes)?;
    rewriter.finish()?;
    let rewritten = cpu_time()? - begin;
    let speed = |time: Duration| bytes.len() as f64 / time.as_secs_f64() / 1e9;
    let (scan, rewrite) = (speed(scanned), speed(rewritten));
    writeln!(io::stdout(), "{name}: {found} found, scan {scan:.2} GB/s, rewrite {rewrite:.2} GB/s")
}

/// What this thread has used of a processor, so that other work on the machine does not count (`proc(5)`, schedstat).
fn cpu_time() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The xorshift64 generator: inputs need no better randomness, and are the same in every run.
struct Random(u64);

impl Random {
    fn pick(&mut self, alphabet: &[u8]) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        alphabet[(self.0 >> 33) as usize % alphabet.len()]
    }
}
