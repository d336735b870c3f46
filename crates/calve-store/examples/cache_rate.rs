//! How fast archives are cut, stored, committed and read: `cargo run --release -p calve-store --example cache_rate [FILE]`.
//!
//! The archive is FILE, or made up: text with references in it, which compresses as programs do.

use std::io::Write;
use std::time::Instant;

use calve_nix::{NarWriter, Sha256Hash, StorePath};
use calve_store::PathInfo;
use calve_store::cache::{Cache, CacheOptions, NarEncoding};
use calve_store::chunk::StoredChunk;
use calve_store::cut::{CHUNK_LEVEL, Cutter, cut, cut_stored};
use calve_store::normal::Normaliser;
use calve_store::recipe::Recipe;
use calve_store::remote::{Manifest, Remote, UPLOAD_BYTES_MAX};
use futures_util::StreamExt;

const MADE_UP_BYTES: usize = 256 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reference = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-glibc-2.40")?;
    let archive = match std::env::args_os().nth(1) {
        Some(file) => std::fs::read(file)?,
        None => {
            let contents = made_up(&reference);
            let mut archive = NarWriter::new(Vec::new())?;
            archive.file(b"", false, contents.len() as u64, &mut contents.as_slice())?;
            archive.finish()?
        }
    };
    let mib = archive.len() as f64 / f64::from(1 << 20);
    let rate = |what: &str, begin: Instant| {
        println!("{what:<44} {:8.0} MiB/s", mib / begin.elapsed().as_secs_f64());
    };

    let begin = Instant::now();
    let mut bytes = archive.clone();
    rate("copy", begin);
    let begin = Instant::now();
    Normaliser::new(&[&reference]).normalise(&mut bytes, true);
    rate("normalise", begin);
    let begin = Instant::now();
    let mut cutter = Cutter::new(&[&reference], None, |_, _, _| Ok(()));
    cutter.write_all(&archive)?;
    cutter.finish()?;
    rate("normalise, cut", begin);
    let begin = Instant::now();
    cut(&[&reference], None, |out| out.write_all(&archive), |_| Ok(()))?;
    rate("normalise, cut, hash; one thread", begin);
    let threads = std::thread::available_parallelism()?;
    let begin = Instant::now();
    cut(&[&reference], Some(threads), |out| out.write_all(&archive), |_| Ok(()))?;
    rate("normalise, cut, hash; all processors", begin);
    let begin = Instant::now();
    let (recipe, chunks) = stored(&reference, &archive, threads)?;
    rate("normalise, cut, hash, zstd; all processors", begin);
    let begin = Instant::now();
    let nar_hash = Sha256Hash::of(&archive);
    rate("SHA-256", begin);
    let info = PathInfo {
        path: StorePath::from_source("rate", &nar_hash)?,
        nar_hash,
        nar_size: archive.len() as u64,
        references: vec![reference.clone()],
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    drop(archive);
    through_cache(info, recipe, chunks, rate).await
}

async fn through_cache(
    mut info: PathInfo,
    recipe: Recipe,
    chunks: Vec<StoredChunk>,
    rate: impl Fn(&str, Instant),
) -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let cache = Cache::open(CacheOptions::local(dir.path())).await?;
    // The reference itself is not stored: the path refers to itself by the same characters.
    let own = format!("{}-rate", info.references[0].hash_part());
    info.path = StorePath::from_base_name(&own)?;
    info.references = vec![info.path.clone()];
    println!("{} chunks, {} MiB stored", chunks.len(), stored_bytes(&chunks) >> 20);
    let begin = Instant::now();
    let (mut group, mut bytes) = (Vec::new(), 0);
    for chunk in chunks {
        bytes += chunk.zstd.len();
        group.push(chunk);
        if bytes > UPLOAD_BYTES_MAX - (1 << 20) {
            cache.put_chunks(std::mem::take(&mut group)).await?;
            bytes = 0;
        }
    }
    cache.put_chunks(group).await?;
    rate("put_chunks, one after the other", begin);
    let begin = Instant::now();
    let manifest = Manifest { info, recipe: recipe.id(), lazy: None };
    let manifest = cache.commit(vec![manifest], vec![recipe]).await?.remove(0);
    rate("commit", begin);
    for (what, encoding) in [("archive, plain", NarEncoding::Plain), ("archive, zstd", NarEncoding::Zstd)] {
        let begin = Instant::now();
        let mut stream = cache.nar_stream(&manifest, encoding).await?;
        while let Some(bytes) = stream.next().await {
            std::hint::black_box(bytes?);
        }
        rate(what, begin);
    }
    Ok(())
}

fn stored_bytes(chunks: &[StoredChunk]) -> usize {
    chunks.iter().map(|chunk| chunk.zstd.len()).sum()
}

fn stored(
    reference: &StorePath,
    archive: &[u8],
    threads: std::num::NonZeroUsize,
) -> std::io::Result<(Recipe, Vec<StoredChunk>)> {
    cut_stored(&[reference], Some(threads), CHUNK_LEVEL, |out| out.write_all(archive))
}

/// Words of a small language in random order, a reference every few KiB.
fn made_up(reference: &StorePath) -> Vec<u8> {
    let mut state: u64 = 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<Vec<u8>> =
        (0..4096).map(|_| next().to_le_bytes()[..1 + (next() % 8) as usize].to_vec()).collect();
    let mut bytes = Vec::with_capacity(MADE_UP_BYTES + 64);
    while bytes.len() < MADE_UP_BYTES {
        if next() % 1024 == 0 {
            bytes.extend_from_slice(reference.to_string().as_bytes());
        }
        bytes.extend_from_slice(&words[(next() % 4096) as usize]);
    }
    bytes
}
