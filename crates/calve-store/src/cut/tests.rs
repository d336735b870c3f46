use std::collections::HashSet;

use calve_nix::Sha256Hash;
use proptest::prelude::*;

use super::foretold::PAUSE_MAX;
use super::*;
use crate::index::LocalIndex;
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
    recipe_foretold(archive, references, None, threads, write)
}

fn recipe_foretold(
    archive: &[u8],
    references: &[&StorePath],
    foretold: Option<Foretold<'_>>,
    threads: usize,
    write: usize,
) -> (Recipe, Vec<u8>) {
    let plain = Mutex::new(std::collections::HashMap::new());
    let recipe = cut_foretold(
        references,
        foretold,
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

/// An index that knows the recipes of these archives.
fn index_of(archives: &[&[u8]]) -> (LocalIndex, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let index = LocalIndex::open(&dir.path().join("index")).unwrap();
    for (n, archive) in (0..).zip(archives) {
        let (recipe, _) = recipe(archive, &[], 0, 1 << 16);
        let (path, hash) = (path(n, "p"), Sha256Hash::of(archive));
        index.record([(&path, &hash, recipe.id(), &recipe)].into_iter()).unwrap();
    }
    (index, dir)
}

fn masks() -> Masks {
    Cutter::new(&[], None, |_, _, _| Ok(())).masks
}

/// FastCDC looks at the byte behind a chunk too, and takes bytes in pairs.
#[test]
fn a_known_chunk_ends_elsewhere_where_other_bytes_follow() {
    let archive = noise(11, 2_000_000);
    let (index, _dir) = index_of(&[&archive]);
    let mut ends = Vec::new();
    for piece in recipe(&archive, &[], 0, 1 << 16).0.pieces {
        ends.push(ends.last().copied().unwrap_or(0) + piece.len as usize);
    }
    let mut moved = 0;
    for (n, &at) in ends.iter().enumerate().take(ends.len() - 1).skip(1) {
        for change in 0..4 {
            let mut edited = archive.clone();
            match change {
                0 => edited[at] ^= 0x55,
                1 => edited[at - 1000] ^= 0x55,
                end => edited.truncate(at + end - 2),
            }
            let searched = recipe(&edited, &[], 0, 1 << 16).0;
            let foretold = recipe_foretold(&edited, &[], Some(Foretold::new(&index)), 0, 5000).0;
            assert_eq!(foretold, searched, "cut {n} at {at}, change {change}");
            moved += usize::from(change == 0 && searched.pieces[n].len as usize != at - ends[n - 1]);
        }
    }
    assert!(moved > ends.len() / 2, "{moved} of {} cuts depend on the byte behind", ends.len());
}

/// Recipes come from elsewhere, and may say what nobody cuts.
#[test]
fn a_known_recipe_of_small_chunks_is_searched() {
    let archive = noise(11, 200_000);
    let first = recipe(&archive, &[], 0, 1 << 16).0.pieces[0];
    let end = first.len as usize;
    let piece = |bytes: &[u8]| Piece { id: ChunkId::of(bytes), len: bytes.len() as u32 };
    let pieces = vec![first, piece(&archive[end..end + 8]), piece(&archive[end + 8..])];
    let strange = Recipe { pieces, positions: Vec::new() };
    let (index, _dir) = index_of(&[]);
    let (path, hash) = (path(1, "p"), Sha256Hash::of(&archive));
    index.record([(&path, &hash, strange.id(), &strange)].into_iter()).unwrap();
    for end in [end + 9, end + 5000, archive.len()] {
        let searched = recipe(&archive[..end], &[], 0, 5000).0;
        let foretold = recipe_foretold(&archive[..end], &[], Some(Foretold::new(&index)), 0, 5000).0;
        assert_eq!(foretold, searched);
    }
}

#[test]
fn what_is_known_is_not_searched() {
    let archive = noise(11, 2_000_000);
    let (index, _dir) = index_of(&[&archive]);
    let pieces = recipe(&archive, &[], 0, 1 << 16).0.pieces;
    let mut foretold = Foretold::new(&index);
    assert_eq!(foretold.next_chunk(&archive, masks()), None, "nothing is known of the first");
    let mut at = pieces[0].len as usize;
    assert_eq!(foretold.look_up(&archive[..at]), Some(pieces[0].id));
    let (last, known) = pieces.split_last().unwrap();
    for piece in &known[1..] {
        assert_eq!(foretold.next_chunk(&archive[at..], masks()), Some((piece.len as usize, piece.id)));
        at += piece.len as usize;
    }
    assert_eq!(
        foretold.next_chunk(&archive[at..], masks()),
        None,
        "an archive may go on where the known one ends"
    );
    assert_eq!(at + last.len as usize, archive.len());
}

#[test]
fn what_is_not_known_is_looked_up_less_and_less() {
    let archive = noise(11, 2_000_000);
    let (index, _dir) = index_of(&[&archive]);
    let mut foretold = Foretold::new(&index);
    let looked_up = (0..1000_u32).filter(|n| foretold.look_up(&n.to_le_bytes()).is_some()).count();
    assert!((10..40).contains(&looked_up), "{looked_up}");
    let first = recipe(&archive, &[], 0, 1 << 16).0.pieces[0];
    let chunk = &archive[..first.len as usize];
    let found = (0..=PAUSE_MAX).find_map(|_| foretold.look_up(chunk));
    assert_eq!(found, Some(first.id));
    assert!(foretold.next_chunk(&archive[chunk.len()..], masks()).is_some(), "what it knows is found again");
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

    /// Whatever is known, and however much of it is still true.
    #[test]
    fn foretold_cuts_are_those_that_a_search_finds(
        edits in prop::collection::vec((0_usize..1_500_000, 0_usize..200_000, 0_usize..200_000), 0..6),
        end in 0_usize..100_000,
        threads in 0_usize..3,
        other in any::<bool>(),
    ) {
        let archive = noise(9, 1_500_000);
        let mut edited = archive.clone();
        for (n, (at, removed, added)) in (20..).zip(edits) {
            let at = at.min(edited.len());
            let to = (at + removed).min(edited.len());
            edited.splice(at..to, noise(n, added));
        }
        // Parts of another archive, and of this one once more.
        if other {
            edited.extend_from_slice(&noise(10, 1_000_000)[300_000..]);
            edited.extend_from_slice(&archive[..400_000]);
        }
        edited.truncate(edited.len() - end.min(edited.len()));
        let (index, _dir) = index_of(&[&archive, &noise(10, 1_000_000)]);
        let searched = recipe(&edited, &[], threads, 1 << 16);
        prop_assert_eq!(recipe_foretold(&edited, &[], Some(Foretold::new(&index)), threads, 5000), searched);
    }

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
