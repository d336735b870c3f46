//! File contents taken from this host, so that they compress as real ones do; the same for the same seed on the same host.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::ensure;

/// Where files are taken from.
const FROM: &str = "/usr";
/// What is not: too special to this or that host.
const BUT: [&str; 4] = ["google-cloud-sdk", "debug", "src", "local"];
/// Sizes of small files in bytes.
const SMALL_BYTES: std::ops::Range<u64> = 200..32 << 10;
/// Small files of one directory after the other, at most: no directory stands for all.
const NEIGHBOURS_MAX: usize = 100;
/// Least size of a program or library in bytes.
const ELF_BYTES_MIN: u64 = 256 << 10;
/// Least number of files of a kind; with fewer all would look alike.
const FILES_MIN: usize = 20;

/// A xorshift generator: quick, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The files that contents come from.
pub struct Contents {
    /// Small files of all kinds, neighbours beside each other.
    small: Vec<PathBuf>,
    /// Programs and libraries.
    elf: Vec<PathBuf>,
}

impl Contents {
    pub fn new() -> anyhow::Result<Self> {
        let (mut dirs, mut elf) = (Vec::new(), Vec::new());
        let mut open = vec![PathBuf::from(FROM)];
        while let Some(dir) = open.pop() {
            let mut small = Vec::new();
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries {
                let entry = entry?;
                let (kind, path) = (entry.file_type()?, entry.path());
                if kind.is_dir() && !BUT.iter().any(|but| entry.file_name() == *but) {
                    open.push(path);
                } else if kind.is_file() {
                    let size = entry.metadata()?.len();
                    if SMALL_BYTES.contains(&size) {
                        small.push(path);
                    } else if size >= ELF_BYTES_MIN && is_elf(&path) {
                        elf.push(path);
                    }
                }
            }
            small.sort_unstable();
            small.truncate(NEIGHBOURS_MAX);
            dirs.push((dir, small));
        }
        dirs.sort_unstable();
        elf.sort_unstable();
        let mut random = Random::new(7);
        shuffle(&mut dirs, &mut random);
        shuffle(&mut elf, &mut random);
        let small: Vec<_> = dirs.into_iter().flat_map(|(_, small)| small).collect();
        ensure!(small.len().min(elf.len()) >= FILES_MIN, "{FROM} has too few files to take contents from");
        Ok(Self { small, elf })
    }

    /// The contents of the `n`th small file.
    pub fn small_file(&self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = fs::read(&self.small[n % self.small.len()])?;
        mask(&mut bytes, (n / self.small.len()) as u8);
        Ok(bytes)
    }

    /// Writes `size` bytes as of programs and libraries.
    pub fn elf(&self, random: &mut Random, size: usize, out: &mut impl Write) -> io::Result<()> {
        write(&self.elf, random, size, out)
    }

    /// Writes `size` bytes as of many small files in a row.
    pub fn text(&self, random: &mut Random, size: usize, out: &mut impl Write) -> io::Result<()> {
        write(&self.small, random, size, out)
    }
}

/// Files from any place of any one on. Every byte is changed by the same mask, which compresses as well, so that what is
/// taken twice is not the same twice.
fn write(files: &[PathBuf], random: &mut Random, size: usize, out: &mut impl Write) -> io::Result<()> {
    let (mut at, mut change) = (random.below(files.len() as u64) as usize, random.next() as u8);
    let mut skip = random.next();
    let mut left = size;
    while left > 0 {
        let mut file = File::open(&files[at])?;
        file.seek(SeekFrom::Start(skip % file.metadata()?.len().max(1)))?;
        let mut bytes = Vec::new();
        file.take(left as u64).read_to_end(&mut bytes)?;
        mask(&mut bytes, change);
        out.write_all(&bytes)?;
        left -= bytes.len();
        (at, skip) = (at + 1, 0);
        if at == files.len() {
            (at, change) = (0, change.wrapping_add(1));
        }
    }
    Ok(())
}

fn mask(bytes: &mut [u8], mask: u8) {
    bytes.iter_mut().for_each(|byte| *byte ^= mask);
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for n in (1..items.len()).rev() {
        items.swap(n, random.below(n as u64 + 1) as usize);
    }
}
