//! Archives that are hashed ahead of their commits: found checked there, and believed only where the cache worked it out for the
//! very same path and recipe.
#![cfg(feature = "cache")]

mod cache_support;

use std::sync::Arc;

use cache_support::{Made, assert_intact, chunks, closure, made, noise, options, path};
use calve_nix::Sha256Hash;
use calve_store::cache::{Cache, CacheOptions, Storage};
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::recipe::{Piece, Position, Recipe};
use calve_store::remote::{ArchivePart, Manifest, PART_PIECES_MAX, Remote, RemoteError};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use tokio::sync::mpsc::channel;

/// A cache whose objects a test may take away.
async fn cache(dir: &std::path::Path) -> (Cache, Arc<InMemory>) {
    let objects = Arc::new(InMemory::new());
    let storage = Storage::Memory(objects.clone());
    (Cache::open(CacheOptions { storage, ..options(dir) }).await.unwrap(), objects)
}

/// Takes every object away: whoever wants to read a chunk from now on fails.
async fn take_away(objects: &InMemory) {
    use futures_util::StreamExt;
    use object_store::ObjectStore;
    let names: Vec<_> = objects.list(None).map(|meta| meta.unwrap().location).collect().await;
    for name in names {
        objects.delete(&name).await.unwrap();
    }
}

/// An archive as parts of so many chunks; all positions come with the first, as they may come early and never late.
fn parts(recipe: &Recipe, pieces: usize) -> Vec<ArchivePart> {
    let part = |pieces: &[Piece]| ArchivePart { pieces: pieces.to_vec(), positions: Vec::new() };
    let mut parts: Vec<_> = recipe.pieces.chunks(pieces).map(part).collect();
    parts[0].positions.clone_from(&recipe.positions);
    parts
}

async fn ahead(cache: &dyn Remote, made: &Made, parts: Vec<ArchivePart>) -> Result<(), RemoteError> {
    let (give, take) = channel(parts.len().max(1));
    for part in parts {
        give.send(part).await.unwrap();
    }
    drop(give);
    cache.hash_ahead(made.info.clone(), take).await
}

async fn put(cache: &Cache, made: &Made) -> Recipe {
    let (recipe, stored) = chunks(made);
    cache.put_chunks(stored).await.unwrap();
    recipe
}

async fn commit(cache: &Cache, made: &Made, recipe: &Recipe) -> Result<Vec<Manifest>, RemoteError> {
    let manifest = Manifest { info: made.info.clone(), recipe: recipe.id(), lazy: None };
    cache.commit(vec![manifest], vec![recipe.clone()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_reads_nothing_of_what_was_hashed_ahead() {
    let dir = tempfile::tempdir().unwrap();
    for pieces in [1, 3, PART_PIECES_MAX] {
        let (cache, objects) = cache(&dir.path().join(pieces.to_string())).await;
        for made in closure(1) {
            let recipe = put(&cache, &made).await;
            ahead(&cache, &made, parts(&recipe, pieces)).await.unwrap();
            take_away(&objects).await;
            let manifest = commit(&cache, &made, &recipe).await.unwrap().remove(0);
            assert!(manifest.lazy.is_some(), "its listing is kept with it");
        }
    }
}

/// The plain bytes of what was just pushed are in memory; those of what was pushed before are read.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_hashed_ahead_is_intact() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, objects) = cache(dir.path()).await;
    let paths = closure(1);
    for made in &paths {
        let recipe = put(&cache, made).await;
        // The second time from the packs.
        for _ in 0..2 {
            ahead(&cache, made, parts(&recipe, 2)).await.unwrap();
        }
        commit(&cache, made, &recipe).await.unwrap();
    }
    assert_intact(&cache, &paths).await;
    // One whose chunks are neither here nor there is refused by name, and its commit, too.
    let other = made("other", 1, 300_000, &[]);
    let recipe = put(&cache, &other).await;
    ahead(&cache, &other, parts(&recipe, 2)).await.unwrap();
    take_away(&objects).await;
    let refused = ahead(&cache, &other, parts(&recipe, 2)).await.unwrap_err();
    assert!(refused.to_string().contains("packs/"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_is_refused_and_nothing_of_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, objects) = cache(dir.path()).await;
    let paths = closure(1);
    for made in &paths[..1] {
        let recipe = put(&cache, made).await;
        commit(&cache, made, &recipe).await.unwrap();
    }
    let tool = &paths[1];
    let recipe = put(&cache, tool).await;
    let good = || parts(&recipe, 2);
    let said = async |made: &Made, parts| ahead(&cache, made, parts).await.unwrap_err().to_string();

    let mut another = tool.clone();
    another.info.nar_hash = Sha256Hash::of(b"another");
    assert!(said(&another, good()).await.contains("-tool is damaged: its chunks give"));
    let mut shorter = tool.clone();
    shorter.info.nar_size -= 8;
    assert!(said(&shorter, good()).await.contains("more than the"));
    let mut fewer = good();
    fewer.pop();
    assert!(said(tool, fewer).await.contains("-tool is damaged"));
    assert!(said(tool, Vec::new()).await.contains("-tool is damaged"));
    let mut swapped = good();
    swapped.swap(0, 1);
    assert!(said(tool, swapped).await.contains("-tool is damaged"));
    let mut late = good();
    late[1].positions = std::mem::take(&mut late[0].positions);
    assert!(said(tool, late).await.contains("a position comes behind the chunk that it lies in"));
    let mut unplaced = good();
    unplaced[0].positions.clear();
    assert!(said(tool, unplaced).await.contains("-tool is damaged"));
    let mut stranger = good();
    stranger[0].positions[0].reference = 9;
    assert!(said(tool, stranger).await.contains("reference 9 of a path that has 2"));
    let mut far = good();
    far[0].positions.push(Position { skip: u64::MAX, reference: 0 });
    assert!(said(tool, far).await.contains("beyond all archives"));
    let mut unknown = good();
    unknown[1].pieces[0] = Piece { id: ChunkId([7; 32]), len: 1 };
    assert!(said(tool, unknown).await.contains(&format!("chunk {}", ChunkId([7; 32]))));
    let mut often = good();
    often[0].positions = vec![Position { skip: 0, reference: 0 }; (1 << 18) + 1];
    assert!(said(tool, often).await.contains("too often to be hashed ahead"));
    let mut addressed = tool.clone();
    addressed.info.ca = Some(format!("fixed:r:sha256:{}", Sha256Hash::of(b"").to_base32()));
    assert!(said(&addressed, good()).await.contains("its content address"));

    // None of that counts at a commit, which reads it all by itself, and finds no objects.
    take_away(&objects).await;
    assert!(commit(&cache, tool, &recipe).await.is_err());
}

/// What was worked out for one path says nothing of another one, nor of another recipe of the same.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_same_path_with_the_same_recipe_was_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, objects) = cache(dir.path()).await;
    let libc = &closure(1)[0];
    let recipe = put(&cache, libc).await;
    ahead(&cache, libc, parts(&recipe, 2)).await.unwrap();
    // The same bytes cut elsewhere.
    let halves: Vec<_> = libc.archive.chunks(100_000).collect();
    let again: Vec<_> =
        halves.iter().map(|bytes| StoredChunk::compress(ChunkId::of(bytes), bytes, 1).unwrap()).collect();
    let pieces = again.iter().map(|chunk| Piece { id: chunk.id, len: chunk.len }).collect();
    let other = Recipe { pieces, positions: Vec::new() };
    cache.put_chunks(again).await.unwrap();
    // What is in memory of it is used up by this.
    ahead(&cache, &made("libc", 2, 900_000, &[]), parts(&other, 2)).await.unwrap();
    take_away(&objects).await;
    assert!(commit(&cache, libc, &other).await.is_err());
    let mut renamed = libc.clone();
    renamed.info.path = path("libd", 1);
    assert!(commit(&cache, &renamed, &recipe).await.is_err());
    let mut referring = libc.clone();
    referring.info.references.push(referring.info.path.clone());
    assert!(commit(&cache, &referring, &recipe).await.is_err());
    commit(&cache, libc, &recipe).await.unwrap();
}

/// An archive of a file with the bytes of `made`'s up to one of its cuts, and noise behind it; and how many chunks they share.
fn changed_behind(made: &Made, name: &str, cut: u64) -> (Made, usize) {
    const END: usize = 16;
    /// A cut follows from its chunk's bytes and the one behind.
    const BEHIND: usize = 1;
    let (mut at, mut shared) = (0, 0);
    for piece in chunks(made).0.pieces {
        at += u64::from(piece.len) as usize;
        shared += 1;
        if at as u64 >= cut {
            break;
        }
    }
    let mut changed = made.clone();
    let contents = at + BEHIND..made.archive.len() - END;
    changed.archive[contents.clone()].copy_from_slice(&noise(name.len() as u64, contents.len()));
    changed.info.path = path(name, 1);
    changed.info.nar_hash = Sha256Hash::of(&changed.archive);
    (changed, shared)
}

/// States are kept every 4 MiB; whatever lies before the last one that is shared is not read again.
#[tokio::test(flavor = "multi_thread")]
async fn what_begins_as_another_archive_is_read_from_there_on() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, objects) = cache(dir.path()).await;
    let one = made("one", 1, 11 << 20, &[]);
    let recipe = put(&cache, &one).await;
    ahead(&cache, &one, parts(&recipe, 5)).await.unwrap();
    commit(&cache, &one, &recipe).await.unwrap();
    take_away(&objects).await;
    let put_rest = async |made: &Made, shared: usize| {
        let (recipe, stored) = chunks(made);
        let rest = &recipe.pieces[shared..];
        let new = stored.into_iter().filter(|chunk| rest.iter().any(|piece| piece.id == chunk.id));
        cache.put_chunks(new.collect()).await.unwrap();
        recipe
    };
    let (two, shared) = changed_behind(&one, "two", 8 << 20);
    let recipe = put_rest(&two, shared).await;
    ahead(&cache, &two, parts(&recipe, 5)).await.unwrap();
    commit(&cache, &two, &recipe).await.unwrap();
    // What that went on from is its own beginning as well, and a commit without anything ahead goes on as well.
    let (three, shared) = changed_behind(&two, "three", 4 << 20);
    let recipe = put_rest(&three, shared).await;
    let manifest = commit(&cache, &three, &recipe).await.unwrap().remove(0);
    assert!(manifest.lazy.is_some(), "its listing begins as the other one's");
    // What is the same only further on is not known, and cannot be read any more.
    let mut four = one.clone();
    four.archive[200] ^= 1;
    four.info.path = path("four", 1);
    four.info.nar_hash = Sha256Hash::of(&four.archive);
    let (recipe, stored) = chunks(&four);
    cache.put_chunks(stored.into_iter().take(1).collect()).await.unwrap();
    let refused = ahead(&cache, &four, parts(&recipe, 5)).await.unwrap_err();
    assert!(refused.to_string().contains("packs/"), "{refused}");
}

/// What begins as another archive does not wait without end for the place where that is compared.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_chunks_behind_a_known_beginning_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _) = cache(dir.path()).await;
    let one = made("one", 1, 5 << 20, &[]);
    let recipe = put(&cache, &one).await;
    ahead(&cache, &one, parts(&recipe, 5)).await.unwrap();
    let small = |n: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        Piece { id: ChunkId(id), len: 1 }
    };
    let pieces: Vec<_> =
        recipe.pieces[..1].iter().copied().chain((0..4 * PART_PIECES_MAX).map(small)).collect();
    let small = Recipe { pieces, positions: Vec::new() };
    let (give, take) = channel(8);
    for part in parts(&small, PART_PIECES_MAX) {
        give.send(part).await.unwrap();
    }
    // It never ends, and is refused.
    let refused = cache.hash_ahead(one.info.clone(), take).await.unwrap_err();
    assert!(refused.to_string().contains("chunk "), "{refused}");
    drop(give);
}

/// The same chunks are other bytes where another hash part is restored in them.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_begins_as_its_own_hash_says() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _) = cache(dir.path()).await;
    let builds = [1, 2].map(|build| made("tool", build, 9 << 20, &[&path("tool", build)]));
    let recipes = [put(&cache, &builds[0]).await, put(&cache, &builds[1]).await];
    assert_eq!(recipes[0], recipes[1]);
    for made in &builds {
        ahead(&cache, made, parts(&recipes[0], 7)).await.unwrap();
        commit(&cache, made, &recipes[0]).await.unwrap();
    }
    assert_intact(&cache, &builds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_at_once_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _) = cache(dir.path()).await;
    let libc = &closure(1)[0];
    let recipe = put(&cache, libc).await;
    let mut begun = Vec::new();
    let refused = loop {
        match cache.hash_ahead_of(libc.info.clone()) {
            Ok(ahead) => begun.push(ahead),
            Err(error) => break error,
        }
    };
    assert_eq!(
        refused.to_string(),
        "it hashes 96 MiB of archives ahead of their commits already, and no more at once"
    );
    assert_eq!(begun.len(), 96, "each counts for one at least");
    // One that is given up makes room.
    drop(begun.pop());
    ahead(&cache, libc, parts(&recipe, 2)).await.unwrap();
}
