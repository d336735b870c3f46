//! What this machine can do at all: decompress, hash and write the same files on all processors, with nothing between.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use calve_nix::HashWriter;
use zstd::bulk::Decompressor;

use super::spent::{of_this_process, on_all_processors};

/// Plain bytes of one compressed block, as chunks have on average.
const BLOCK_BYTES: usize = 64 << 10;
/// Plain bytes that one processor takes at a time.
const JOB_BYTES: usize = 8 << 20;

/// Blocks and the parts of files that they hold.
#[derive(Default)]
struct Job {
    blocks: Vec<Vec<u8>>,
    /// File, place in it, bytes.
    parts: Vec<(usize, u64, usize)>,
    bytes: usize,
}

pub struct Bound {
    jobs: Vec<Job>,
    files: usize,
}

impl Bound {
    /// Compresses the files at `level`.
    pub fn new(files: &[PathBuf], level: i32) -> anyhow::Result<Self> {
        let (mut jobs, mut job, mut plain) = (Vec::new(), Job::default(), Vec::new());
        for (n, file) in files.iter().enumerate() {
            for (at, part) in fs::read(file)?.chunks(JOB_BYTES).enumerate() {
                job.parts.push((n, (at * JOB_BYTES) as u64, part.len()));
                job.bytes += part.len();
                plain.extend_from_slice(part);
                if job.bytes >= JOB_BYTES {
                    jobs.push(finished(std::mem::take(&mut job), &mut plain, level)?);
                }
            }
        }
        jobs.push(finished(job, &mut plain, level)?);
        Ok(Self { jobs, files: files.len() })
    }

    /// Does it once, into an empty directory: time, and processor time.
    pub fn measure(&self, dir: &Path) -> anyhow::Result<(Duration, Duration)> {
        of_this_process(|| {
            for n in 0..=self.files / 50 {
                fs::create_dir(dir.join(n.to_string()))?;
            }
            on_all_processors(&self.jobs, || {
                let mut decompressor = Decompressor::new()?;
                Ok(move |_, job: &Job| job.run(dir, &mut decompressor))
            })
        })
    }
}

impl Job {
    fn run(&self, dir: &Path, decompressor: &mut Decompressor<'_>) -> anyhow::Result<()> {
        let mut plain = Vec::with_capacity(self.bytes + BLOCK_BYTES);
        let mut hash = HashWriter::default();
        for block in &self.blocks {
            let bytes = decompressor.decompress(block, BLOCK_BYTES)?;
            hash.write_all(&bytes)?;
            plain.extend_from_slice(&bytes);
        }
        std::hint::black_box(hash.finish());
        let mut rest = plain.as_slice();
        for &(file, at, len) in &self.parts {
            let (part, behind) = rest.split_at(len);
            rest = behind;
            let name = dir.join(format!("{}/{file}", file / 50));
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(name)?;
            file.write_all_at(part, at)?;
        }
        Ok(())
    }
}

fn finished(mut job: Job, plain: &mut Vec<u8>, level: i32) -> anyhow::Result<Job> {
    for block in plain.chunks(BLOCK_BYTES) {
        job.blocks.push(zstd::bulk::compress(block, level)?);
    }
    plain.clear();
    Ok(job)
}
