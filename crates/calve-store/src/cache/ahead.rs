//! Archives that are hashed while they are still pushed: their commits find them checked.
//!
//! What is kept of one says what bytes a recipe gives for a path with these references, and was worked out here: it holds
//! whoever commits it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use calve_nix::{Sha256Hash, StorePath};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::check::ArchiveCheck;
use super::listing::Listing;
use super::{Cache, CacheError};
use crate::PathInfo;
use crate::normal::Restorer;
use crate::recipe::{Piece, Position};
use crate::remote::{AHEAD_ROOM_KIB, ArchivePart, ahead_room_kib};

/// Most positions of one, which stay in memory until it ends: 4 MiB. What has more is hashed at its commit.
const AHEAD_POSITIONS_MAX: usize = 1 << 18;
/// Most archives that wait for their commits, those of some seconds of a push; older ones are hashed again there.
const CHECKED_MAX: usize = 1024;
/// Most bytes of their listings.
const CHECKED_BYTES_MAX: usize = 16 << 20;

/// What is hashed ahead, and what was.
pub(super) struct Aheads {
    /// Room for those that are being hashed, in KiB.
    room: Arc<Semaphore>,
    /// Oldest first.
    checked: Mutex<VecDeque<Checked>>,
}

/// An archive that was checked.
struct Checked {
    of: Of,
    listing: Option<Listing>,
}

/// Which archive: of what path, and put together how.
#[derive(PartialEq, Eq)]
struct Of {
    path: StorePath,
    nar_hash: Sha256Hash,
    nar_size: u64,
    references: Vec<StorePath>,
    ca: Option<String>,
    /// BLAKE3 of its recipe's chunks, and of its positions.
    recipe: [[u8; 32]; 2],
}

/// An archive that is being hashed ahead.
pub struct Ahead {
    check: ArchiveCheck,
    restorer: Restorer,
    digest: Digest,
    /// Bytes of the chunks so far.
    size: u64,
    _room: OwnedSemaphorePermit,
}

/// What tells recipes apart, part by part.
#[derive(Default)]
struct Digest {
    pieces: blake3::Hasher,
    positions: blake3::Hasher,
}

impl Default for Aheads {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(AHEAD_ROOM_KIB));
        Self { room, checked: Mutex::default() }
    }
}

impl Aheads {
    fn put(&self, checked: Checked) {
        let mut all = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(checked);
        while all.len() > CHECKED_MAX || all.iter().map(Checked::bytes).sum::<usize>() > CHECKED_BYTES_MAX {
            all.pop_front();
        }
    }

    /// The listing of an archive that was checked ahead, as the only one who gets it; none where it was not.
    pub fn take(&self, info: &PathInfo, pieces: &[Piece], positions: &[Position]) -> Option<Option<Listing>> {
        let mut all = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|checked| checked.of.nar_hash != info.nar_hash) {
            return None;
        }
        let mut digest = Digest::default();
        digest.take(pieces, positions);
        let of = Of::new(info, &digest);
        let at = all.iter().position(|checked| checked.of == of)?;
        Some(all.remove(at)?.listing)
    }
}

impl Checked {
    fn bytes(&self) -> usize {
        let chunks = self.listing.iter().flat_map(|listing| &listing.chunks);
        chunks.map(|chunk| chunk.zstd.len()).sum::<usize>()
    }
}

impl Of {
    fn new(info: &PathInfo, digest: &Digest) -> Self {
        Self {
            path: info.path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            ca: info.ca.clone(),
            recipe: [digest.pieces.finalize().into(), digest.positions.finalize().into()],
        }
    }
}

impl Digest {
    fn take(&mut self, pieces: &[Piece], positions: &[Position]) {
        for piece in pieces {
            self.pieces.update(&piece.id.0).update(&piece.len.to_le_bytes());
        }
        for position in positions {
            self.positions.update(&position.skip.to_le_bytes()).update(&position.reference.to_le_bytes());
        }
    }
}

impl Cache {
    /// Begins to hash the archive of a path.
    pub fn hash_ahead_of(&self, mut info: PathInfo) -> Result<Ahead, CacheError> {
        super::commit::tidy(&mut info)?;
        let room = Arc::clone(&self.0.aheads.room).try_acquire_many_owned(ahead_room_kib(info.nar_size));
        let room = room.map_err(|_| {
            CacheError::Setting(format!(
                "it hashes {} MiB of archives ahead of their commits already, and no more at once",
                AHEAD_ROOM_KIB / 1024
            ))
        })?;
        let restorer = Restorer::new(&[], &info.counted_references()).expect("no positions make sense");
        let check = ArchiveCheck::begin(self.clone(), info);
        Ok(Ahead { check, restorer, digest: Digest::default(), size: 0, _room: room })
    }
}

impl Ahead {
    /// Takes the next part; after an error nothing is kept.
    pub async fn take(&mut self, part: ArchivePart) -> Result<(), CacheError> {
        let info = &self.check.info;
        let damaged = |message: String| CacheError::damaged(&info.path, message);
        let before = self.size;
        self.size += part.pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
        if self.size > info.nar_size {
            let message =
                format!("its archive has more than the {} bytes that it should have", info.nar_size);
            return Err(damaged(message));
        }
        if self.restorer.len() + part.positions.len() > AHEAD_POSITIONS_MAX {
            return Err(damaged(format!(
                "it names its references more than {AHEAD_POSITIONS_MAX} times, too often to be hashed ahead"
            )));
        }
        let known = self.restorer.len();
        self.restorer.extend(&part.positions).map_err(|error| damaged(error.to_string()))?;
        // Its commit restores it, and these were hashed without it.
        if self.restorer.begin_of(known).is_some_and(|begin| begin < before) {
            return Err(damaged("a position comes behind the chunk that it lies in".to_owned()));
        }
        self.digest.take(&part.pieces, &part.positions);
        let _taking = self.check.cache.0.recent.taking();
        self.check.take(&part.pieces, &self.restorer).await
    }

    /// Waits for what comes next, and goes on meanwhile with what was taken: what is wrong with it ends the waiting.
    pub async fn meanwhile<T>(&mut self, next: impl Future<Output = T>) -> Result<T, CacheError> {
        let mut next = std::pin::pin!(next);
        loop {
            tokio::select! {
                next = &mut next => return Ok(next),
                gone_on = self.check.go_on(&self.restorer) => gone_on?,
            }
        }
    }

    /// Keeps for its commit that the archive is what its path says, where it is.
    pub async fn finish(self) -> Result<(), CacheError> {
        let Self { check, restorer, digest, .. } = self;
        let (cache, of) = (check.cache.clone(), Of::new(&check.info, &digest));
        let _taking = cache.0.recent.taking();
        let listing = check.finish(&restorer).await?;
        cache.0.aheads.put(Checked { of, listing });
        Ok(())
    }
}
