//! Paths with made-up archives, and what pushes and reads them.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::Path;
use std::time::Duration;

use calve_nix::store_path::BASE32_ALPHABET;
use calve_nix::{Sha256Hash, StorePath};
use calve_store::PathInfo;
use calve_store::cache::{Cache, CacheOptions, NarEncoding, Storage};
use calve_store::chunk::StoredChunk;
use calve_store::cut::cut_stored;
use calve_store::recipe::Recipe;
use calve_store::remote::{Manifest, Remote, RemoteError};
use futures_util::TryStreamExt;

/// Bytes that repeat nothing, the same for the same seed (xorshift64*).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The path of this name in the `build`th build of everything.
pub fn path(name: &str, build: u64) -> StorePath {
    let seed = name.bytes().fold(build, |seed, byte| seed.wrapping_mul(131).wrapping_add(byte.into()));
    let hash = noise(seed, 32).into_iter().map(|byte| char::from(BASE32_ALPHABET[usize::from(byte % 32)]));
    StorePath::from_base_name(&format!("{}-{name}", hash.collect::<String>())).unwrap()
}

/// A path with its archive.
#[derive(Clone)]
pub struct Made {
    pub info: PathInfo,
    pub archive: Vec<u8>,
}

/// Bytes of the archive of a file without the file, whose size is a multiple of eight.
pub const FRAME_BYTES: usize = 112;

/// The archive of a file.
pub fn archive_of(contents: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for text in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", contents, b")"] {
        archive.extend_from_slice(&(text.len() as u64).to_le_bytes());
        archive.extend_from_slice(text);
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    archive
}

/// A path with an archive of this size: that of a file of noise in which its references stand here and there.
pub fn made(name: &str, build: u64, len: usize, references: &[&StorePath]) -> Made {
    let path = path(name, build);
    let mut contents = noise(name.bytes().map(u64::from).sum(), len - FRAME_BYTES);
    let mut references: Vec<_> = references.iter().map(|path| (*path).clone()).collect();
    for (i, at) in (17..contents.len().saturating_sub(40)).step_by(70_001).enumerate() {
        if let Some(reference) = references.get(i % references.len().max(1)) {
            contents[at..at + 32].copy_from_slice(reference.hash_part().as_bytes());
        }
    }
    let archive = archive_of(&contents);
    assert_eq!(archive.len(), len);
    references.sort_unstable();
    let info = PathInfo {
        path,
        nar_hash: Sha256Hash::of(&archive),
        nar_size: len as u64,
        references,
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    Made { info, archive }
}

/// A closure of three paths, bottom first.
pub fn closure(build: u64) -> Vec<Made> {
    let libc = made("libc", build, 900_000, &[]);
    let tool = made("tool", build, 400_000, &[&libc.info.path, &path("tool", build)]);
    let system = made("system", build, 3000, &[&libc.info.path, &tool.info.path]);
    vec![libc, tool, system]
}

/// Cuts an archive into stored chunks.
pub fn chunks(made: &Made) -> (Recipe, Vec<StoredChunk>) {
    cut_stored(&made.info.counted_references(), None, 1, |out| out.write_all(&made.archive)).unwrap()
}

/// Pushes paths as a client does; gives the manifests and how many chunks were sent.
pub async fn push(cache: &dyn Remote, paths: &[Made]) -> Result<(Vec<Manifest>, usize), RemoteError> {
    let (mut manifests, mut recipes, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for made in paths {
        let (recipe, stored) = chunks(made);
        manifests.push(Manifest { info: made.info.clone(), recipe: recipe.id(), lazy: None });
        recipes.push(recipe);
        all.extend(stored);
    }
    let ids: Vec<_> = all.iter().map(|chunk| chunk.id).collect();
    let missing = cache.missing_chunks(&ids).await?;
    all.retain(|chunk| missing.contains(&chunk.id));
    let sent = all.len();
    cache.put_chunks(all).await?;
    Ok((cache.commit(manifests, recipes).await?, sent))
}

/// A path's archive as the cache puts it together.
pub async fn archive(cache: &Cache, path: &StorePath) -> Vec<u8> {
    let manifest = cache.find(path.hash_part()).await.unwrap().expect("the path is there");
    let stream = cache.nar_stream(&manifest, NarEncoding::Plain).await.unwrap();
    stream.try_collect::<Vec<_>>().await.unwrap().concat()
}

/// Asserts that all of these are there as they were made.
pub async fn assert_intact(cache: &Cache, paths: &[Made]) {
    for made in paths {
        assert!(archive(cache, &made.info.path).await == made.archive, "{}", made.info.path);
    }
}

/// Options of a cache that spares nothing.
pub fn options(dir: &Path) -> CacheOptions {
    CacheOptions { grace: Duration::ZERO, name: Some("test-1".to_owned()), ..CacheOptions::local(dir) }
}

/// A cache in a local directory that spares nothing.
pub async fn local(dir: &Path) -> Cache {
    Cache::open(options(dir)).await.unwrap()
}

/// A cache with its objects in memory.
pub async fn in_memory(dir: &Path) -> Cache {
    let storage = Storage::Memory(std::sync::Arc::default());
    Cache::open(CacheOptions { storage, ..options(dir) }).await.unwrap()
}
