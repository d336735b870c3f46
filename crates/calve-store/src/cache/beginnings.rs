//! How archives that were hashed within the hour begin: what begins alike is hashed from its first change on.
//!
//! Chunks with the hash parts that are restored in them say what bytes an archive has; a digest over both tells beginnings apart.
//! At some places the state of the archive's SHA-256 is kept beside it, in memory only, once the archive was right to its end.
//! Where a later one has the same digest, it has the same bytes up to there: its hash and its listing go on from that state.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calve_nix::HashWriter;
use tokio::time::Instant;

use crate::lazy::Tree;
use crate::normal::Restorer;
use crate::recipe::Piece;

/// Bytes of an archive between two places where states are kept.
const STEP_BYTES: u64 = 4 << 20;
/// So many bytes of an archive at most have such places: 16,384 of them.
const STATES_END: u64 = 64 << 30;
/// Most bytes of memory that all states and trees take.
const BYTES_MAX: usize = 8 << 20;
/// Most archives, which are looked through one by one.
const ARCHIVES_MAX: usize = 256;
/// How long an archive is known: who does not read what it begins with does not notice that this has been damaged since.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// What tells beginnings apart.
type Digest = [u8; 32];

/// The archives.
#[derive(Default)]
pub(super) struct Beginnings(Mutex<VecDeque<Arc<Archive>>>);

/// An archive that was right.
pub(super) struct Archive {
    tree: Tree,
    /// Its beginnings; with states where these end inside of a file's contents, from where a listing can go on.
    beginnings: HashMap<Digest, Option<State>>,
    bytes: usize,
    since: Instant,
}

/// The hash of an archive's first bytes; how many, it knows itself.
type State = HashWriter;

/// Where to go on with an archive that begins as another one.
#[derive(Clone)]
pub(super) struct Known {
    archive: Arc<Archive>,
    state: State,
}

/// What an archive was found to begin as.
pub(super) enum Found {
    /// As none that is known.
    Nothing,
    /// As one that cannot be gone on with here.
    Alike,
    /// As one that can.
    Known(Known),
}

/// How an archive begins, as its chunks come.
#[derive(Default)]
pub(super) struct Beginning {
    at: u64,
    hasher: blake3::Hasher,
    /// The digests up to where they are compared, by bytes.
    digests: HashMap<u64, Digest>,
}

/// Whether the state is kept behind a chunk that takes the archive from one size to another.
fn is_kept(before: u64, after: u64) -> bool {
    after <= STATES_END && before / STEP_BYTES != after / STEP_BYTES
}

impl Beginning {
    /// Takes chunks up to and with the next behind which digests are compared: the first, as most archives differ in it, and
    /// those behind which states are kept. Gives these, those that are left, and the digest. `restorer` has all positions of
    /// them.
    pub fn take<'a>(
        &mut self,
        pieces: &'a [Piece],
        restorer: &Restorer,
    ) -> (&'a [Piece], &'a [Piece], Option<Digest>) {
        for (n, piece) in pieces.iter().enumerate() {
            let (before, len) = (self.at, u64::from(piece.len));
            self.hasher.update(&piece.id.0).update(&piece.len.to_le_bytes());
            for (place, part) in restorer.hashes_in(before, len) {
                self.hasher.update(&[1]).update(&(place as u64).to_le_bytes());
                self.hasher.update(&[part.len() as u8]).update(part);
            }
            self.hasher.update(&[0]);
            self.at += len;
            if before == 0 || is_kept(before, self.at) {
                let digest = self.hasher.finalize().into();
                self.digests.insert(self.at, digest);
                let (taken, left) = pieces.split_at(n + 1);
                return (taken, left, Some(digest));
            }
        }
        (pieces, &[], None)
    }
}

/// Hashes an archive and keeps the states.
pub(super) struct Hasher {
    hash: State,
    states: Vec<State>,
}

impl Hasher {
    pub fn new(known: Option<&Known>) -> Self {
        Self { hash: known.map(|known| known.state.clone()).unwrap_or_default(), states: Vec::new() }
    }

    /// Takes a whole chunk.
    pub fn take(&mut self, chunk: &[u8]) {
        let before = self.hash.bytes();
        self.hash.update(chunk);
        if is_kept(before, self.hash.bytes()) {
            self.states.push(self.hash.clone());
        }
    }

    /// The hash of all, and the states.
    pub fn finish(self) -> (State, Vec<State>) {
        (self.hash, self.states)
    }
}

impl Beginnings {
    /// What is known of an archive that begins so.
    pub fn find(&self, digest: &Digest) -> Found {
        let mut archives = self.lock();
        while archives.front().is_some_and(|oldest| oldest.since.elapsed() > KNOWN_FOR) {
            archives.pop_front();
        }
        let found = archives.iter().rev().find_map(|archive| {
            let state = archive.beginnings.get(digest)?.clone();
            let known = |state| Found::Known(Known { archive: Arc::clone(archive), state });
            Some(state.map_or(Found::Alike, known))
        });
        found.unwrap_or(Found::Nothing)
    }

    /// Keeps an archive that is right, how it begins and the states of its hash; those of the one that it went on from are its
    /// own as well.
    pub fn keep(&self, tree: Tree, beginning: Beginning, states: Vec<State>, known: Option<Known>) {
        // As most archives are: too small.
        if states.is_empty() && known.is_none() {
            return;
        }
        let mut kept: HashMap<_, _> = beginning.digests.values().map(|digest| (*digest, None)).collect();
        for (digest, state) in known.iter().flat_map(|known| &known.archive.beginnings) {
            kept.entry(*digest).and_modify(|kept| kept.clone_from(state));
        }
        let contents: Vec<_> = tree.contents().collect();
        for state in states {
            let at = state.bytes();
            let file = contents.partition_point(|contents| contents.start <= at).checked_sub(1);
            let inside = file.is_some_and(|file| at <= contents[file].end);
            if let Some(digest) = beginning.digests.get(&at).filter(|_| inside) {
                kept.insert(*digest, Some(state));
            }
        }
        let bytes = tree.memory_bytes() + kept.len() * size_of::<(Digest, Option<State>)>();
        if bytes > BYTES_MAX || kept.values().all(Option::is_none) {
            return;
        }
        let archive = Arc::new(Archive { tree, beginnings: kept, bytes, since: Instant::now() });
        let mut archives = self.lock();
        archives.push_back(archive);
        while archives.len() > ARCHIVES_MAX
            || archives.iter().map(|archive| archive.bytes).sum::<usize>() > BYTES_MAX
        {
            archives.pop_front();
        }
    }

    /// Forgets all: where damage is looked for, nothing counts that was read before.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Archive>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Bytes of the archive that need not be read.
    pub fn bytes(&self) -> u64 {
        self.state.bytes()
    }

    /// The other one's listing.
    pub fn tree(&self) -> &Tree {
        &self.archive.tree
    }
}

#[cfg(test)]
mod tests {
    use calve_nix::nar::NarWriter;

    use super::*;
    use crate::chunk::ChunkId;

    /// A tree with a file of three steps that takes some 3 MiB of memory.
    fn large_tree() -> Tree {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(&mut nar).unwrap();
        let size = 3 * STEP_BYTES;
        writer.begin_directory(b"").unwrap();
        writer.file(b"a", false, size, &mut std::io::Read::take(std::io::repeat(7), size)).unwrap();
        for n in 0..800 {
            writer.symlink(format!("b{n:03}").as_bytes(), &[b'x'; 4000]).unwrap();
        }
        writer.end_directory().unwrap();
        writer.finish().unwrap();
        Tree::of_nar(&nar[..]).unwrap().unwrap()
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let tree = large_tree();
        assert!((3 << 20..4 << 20).contains(&tree.memory_bytes()));
        let restorer = Restorer::new(&[], &[]).unwrap();
        let beginnings = Beginnings::default();
        let chunk = vec![7; STEP_BYTES as usize + 1];
        let mut digests = Vec::new();
        for n in 0..3 {
            let pieces = [ChunkId([n; 32]), ChunkId([9; 32])].map(|id| Piece { id, len: chunk.len() as u32 });
            let (mut beginning, mut hasher) = (Beginning::default(), Hasher::new(None));
            for piece in &pieces {
                let (taken, left, digest) = beginning.take(std::slice::from_ref(piece), &restorer);
                assert!((taken.len(), left.len()) == (1, 0));
                digests.push(digest.unwrap());
                hasher.take(&chunk);
            }
            beginnings.keep(tree.clone(), beginning, hasher.finish().1, None);
        }
        let known = |n: usize| match beginnings.find(&digests[n]) {
            Found::Known(known) => Some(known.bytes()),
            Found::Alike => Some(0),
            Found::Nothing => None,
        };
        let (one, two) = (chunk.len() as u64, 2 * chunk.len() as u64);
        let found: Vec<_> = (0..6).map(known).collect();
        assert_eq!(found, [None, None, Some(one), Some(two), Some(one), Some(two)]);
    }
}
