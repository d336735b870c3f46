use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::normal::Restorer;

/// Bytes that repeat nothing, the same for the same seed (xorshift64*).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
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

/// A store path of this name.
pub(crate) fn path(seed: u64, name: &str) -> StorePath {
    let alphabet = calve_nix::store_path::BASE32_ALPHABET;
    let hash: String =
        noise(seed, 32).iter().map(|byte| char::from(alphabet[usize::from(byte % 32)])).collect();
    StorePath::from_base_name(&format!("{hash}-{name}")).unwrap()
}

fn recipe(archive: &[u8], references: &[&StorePath], threads: usize, write: usize) -> (Recipe, Vec<u8>) {
    let plain = Mutex::new(std::collections::HashMap::new());
    let recipe = cut(
        references,
        NonZeroUsize::new(threads),
        |out| archive.chunks(write).try_for_each(|bytes| out.write_all(bytes)),
        |chunk| {
            assert_eq!(ChunkId::of(&chunk.bytes), chunk.id);
            plain.lock().unwrap().insert(chunk.id, chunk.bytes);
            Ok(())
        },
    );
    let recipe = recipe.unwrap();
    let plain = plain.into_inner().unwrap();
    let mut whole: Vec<u8> = recipe.pieces.iter().flat_map(|piece| plain[&piece.id].to_vec()).collect();
    Restorer::new(&recipe.positions, references).unwrap().restore(&mut whole, 0);
    (recipe, whole)
}

#[test]
fn chunks_do_not_depend_on_writes_and_threads() {
    let reference = path(1, "p");
    let mut archive = noise(7, 5_000_000);
    for at in (0..archive.len() - 32).step_by(99_991) {
        archive[at..at + 32].copy_from_slice(reference.hash_part().as_bytes());
    }
    let whole = recipe(&archive, &[&reference], 0, usize::MAX);
    assert_eq!(whole.1, archive);
    assert_eq!(whole.0.positions.len(), archive.len().div_ceil(99_991));
    let average = archive.len() / whole.0.pieces.len();
    assert!((CHUNK_MIN as usize..CHUNK_MAX as usize).contains(&average), "{average}");
    for (threads, write) in [(0, 4096), (0, 777), (1, 1 << 20), (3, 65_536)] {
        assert_eq!(recipe(&archive, &[&reference], threads, write), whole, "{threads} {write}");
    }
    let nothing = recipe(&[], &[&reference], 0, 1);
    assert_eq!(nothing, (Recipe::default(), Vec::new()));
}

#[test]
fn a_rebuild_with_other_hashes_has_the_same_recipe() {
    let (old, new) = (path(1, "p"), path(2, "p"));
    let with = |path: &StorePath| {
        let mut archive = noise(8, 3_000_000);
        for at in (5..archive.len() - 32).step_by(54_321) {
            archive[at..at + 32].copy_from_slice(path.hash_part().as_bytes());
        }
        recipe(&archive, &[path], 0, 4096).0
    };
    assert_eq!(with(&old), with(&new));
    assert_eq!(with(&old).id(), with(&new).id());
}

#[test]
fn a_failure_behind_the_cut_is_told() {
    for threads in [0, 2] {
        let error = cut(
            &[],
            NonZeroUsize::new(threads),
            |out| out.write_all(&noise(1, 20_000_000)),
            |_| Err(io::Error::other("no room")),
        );
        assert_eq!(error.unwrap_err().to_string(), "no room");
    }
}

#[test]
fn stored_chunks_are_checked() {
    let plain = noise(3, 1000);
    let chunk = StoredChunk::compress(ChunkId::of(&plain), &plain, CHUNK_LEVEL).unwrap();
    assert_eq!(chunk.plain(), Ok(plain.clone()));
    for at in 0..chunk.zstd.len() {
        let mut zstd = chunk.zstd.to_vec();
        zstd[at] ^= 4;
        let damaged = StoredChunk { zstd: zstd.into(), ..chunk.clone() }.plain();
        assert!(damaged.is_err() || damaged == Ok(plain.clone()), "byte {at}");
    }
    assert!(StoredChunk { len: 999, ..chunk.clone() }.plain().is_err());
    assert!(StoredChunk { len: 1001, ..chunk.clone() }.plain().is_err());
    assert!(StoredChunk { id: ChunkId::of(b""), ..chunk }.plain().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn an_edit_moves_few_cuts(at in 0_usize..3_000_000, removed in 0_usize..3000, added in 0_usize..3000) {
        let archive = noise(9, 3_000_000);
        let mut edited = archive.clone();
        let end = (at + removed).min(edited.len());
        edited.splice(at..end, noise(10, added));
        let ids = |archive: &[u8]| -> HashSet<_> {
            recipe(archive, &[], 0, 1 << 16).0.pieces.iter().map(|piece| piece.id).collect()
        };
        let (before, after) = (ids(&archive), ids(&edited));
        let new = after.difference(&before).count();
        prop_assert!(new <= 8, "{new} of {} chunks are new", after.len());
    }
}
