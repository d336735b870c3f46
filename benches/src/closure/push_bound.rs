//! What this machine can do at all of a push: read, cut and name by BLAKE3, then once for each chunk compress, decompress, name
//! again and write, and hash everything, on all processors, with nothing between. No push to a cache on the same host can be faster.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::ensure;
use calve_nix::HashWriter;
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::cut::{CutChunk, cut};

use super::spent::{of_this_process, on_all_processors};

/// Bytes that one processor takes at a time.
const JOB_BYTES: u64 = 8 << 20;

/// Parts of files: which, from where, how many bytes.
type Job = Vec<(PathBuf, u64, usize)>;

pub struct PushBound {
    jobs: Vec<Job>,
}

impl PushBound {
    pub fn new(files: &[PathBuf]) -> io::Result<Self> {
        let (mut jobs, mut job, mut bytes) = (Vec::new(), Job::new(), 0);
        for file in files {
            let size = fs::metadata(file)?.len();
            for at in (0..size).step_by(JOB_BYTES as usize) {
                let len = JOB_BYTES.min(size - at);
                job.push((file.clone(), at, len as usize));
                bytes += len;
                if bytes >= JOB_BYTES {
                    jobs.push(std::mem::take(&mut job));
                    bytes = 0;
                }
            }
        }
        jobs.push(job);
        Ok(Self { jobs })
    }

    /// Does it once at a level of zstd, into an empty directory: time, and processor time.
    pub fn measure(&self, dir: &Path, level: i32) -> anyhow::Result<(Duration, Duration)> {
        let seen = Mutex::default();
        of_this_process(|| {
            on_all_processors(&self.jobs, || {
                Ok(|n: usize, job: &Job| run(job, level, &seen, &dir.join(n.to_string())))
            })
        })
    }
}

fn run(job: &Job, level: i32, seen: &Mutex<HashSet<ChunkId>>, pack: &Path) -> anyhow::Result<()> {
    let mut archive = Vec::new();
    for (file, at, len) in job {
        let from = archive.len();
        archive.resize(from + len, 0);
        File::open(file)?.read_exact_at(&mut archive[from..], *at)?;
    }
    let stored = Mutex::new(Vec::new());
    let each = |CutChunk { id, bytes, .. }: CutChunk| {
        if seen.lock().expect("no panics").insert(id) {
            let chunk = StoredChunk::compress(id, &bytes, level)?;
            chunk.plain().map_err(io::Error::other)?;
            stored.lock().expect("no panics").extend_from_slice(&chunk.zstd);
        }
        Ok(())
    };
    let recipe = cut(&[], None, |out| out.write_all(&archive), each)?;
    ensure!(recipe.nar_size() == archive.len() as u64, "it was cut whole");
    let mut hash = HashWriter::default();
    hash.write_all(&archive)?;
    std::hint::black_box(hash.finish());
    fs::write(pack, stored.into_inner().expect("no panics"))?;
    Ok(())
}
