//! Workers: each puts the archives of paths together from their chunks and unpacks them on the way.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use calve_nix::content_address::FileCheck;
use tokio::sync::mpsc::UnboundedSender;

use super::local_chunks::{LocalChunks, Trust, with_local_chunks};
use super::plan::{Origin, Plan, PlannedPath, Wanted};
use super::slots::Slots;
use crate::index::LocalIndex;
use crate::normal::Restorer;
use crate::place::Landing;
use crate::progress::Progress;
use crate::recipe::{Piece, Recipe};
use crate::scratch::remove_tree;
use crate::unpack::{Blocks, UnpackError, unpack};
use crate::{Store, TransferError};

/// What the workers share.
pub(super) struct Work {
    pub store: Arc<Store>,
    pub plan: Arc<Plan>,
    pub slots: Arc<Slots>,
    pub landing: Arc<Landing>,
    pub index: Option<Arc<LocalIndex>>,
    pub progress: Arc<Progress>,
    /// The path that is begun next.
    pub next: AtomicUsize,
}

impl Work {
    /// Unpacks one path after the other and tells of each, until all are begun or one fails.
    pub fn run(
        &self,
        demand: &UnboundedSender<Wanted>,
        done: &UnboundedSender<(usize, Result<(), TransferError>)>,
    ) {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if n >= self.plan.paths.len() || self.slots.is_stopped() {
                return;
            }
            let result = self.unpack(n, demand);
            let failed = result.is_err();
            if done.send((n, result)).is_err() || failed {
                return;
            }
        }
    }

    fn unpack(&self, n: usize, demand: &UnboundedSender<Wanted>) -> Result<(), TransferError> {
        let (path, tree) = (&self.plan.paths[n], self.landing.tree(n));
        self.landing.begin(n, &path.info);
        let mut taken = 0;
        let is_local = |origin: &Origin| matches!(origin, Origin::Local(_));
        match self.put_together(path, &tree, Trust::Whole, demand, &mut taken) {
            // It may be what lies here that is wrong: then it is fetched.
            Err(
                TransferError::Archive { .. } | TransferError::WrongHash { .. } | TransferError::Read { .. },
            ) if path.origins.iter().any(is_local) => {
                remove_tree(&tree)?;
                self.put_together(path, &tree, Trust::Each, demand, &mut taken)
            }
            unpacked => unpacked,
        }
    }

    /// Unpacks a path once; `taken` says how many pieces were taken in earlier tries, and in this one.
    fn put_together(
        &self,
        path: &PlannedPath,
        tree: &Path,
        trust: Trust,
        demand: &UnboundedSender<Wanted>,
        taken: &mut usize,
    ) -> Result<(), TransferError> {
        let restorer = Restorer::new(&path.recipe.positions, &path.info.counted_references());
        let mut check = path.info.file_check();
        let info = &path.info;
        let unpacked = with_local_chunks(&self.store, self.index.as_ref(), path, trust, |local| {
            let pieces = Pieces {
                work: self,
                path,
                restorer: restorer.expect("checked when it was planned"),
                local,
                check: check.as_mut(),
                demand,
                taken,
                next: 0,
                at: 0,
            };
            unpack(pieces, tree, &info.nar_hash, info.nar_size)
        });
        unpacked.map_err(|error| {
            let path = info.path.clone();
            match error {
                UnpackError::Input(error) => match error.downcast() {
                    Ok(error) => error,
                    Err(source) => TransferError::Read { path, source },
                },
                UnpackError::Archive(source) => TransferError::Archive { path, source },
                UnpackError::WrongHash { wanted, found } => TransferError::WrongHash { path, wanted, found },
                UnpackError::Store(error) => error.into(),
            }
        })?;
        if check.is_some_and(|check| !check.is_right()) {
            let message = "its file has another hash than its content address says".to_owned();
            return Err(TransferError::WrongAddress { path: info.path.clone(), message });
        }
        Ok(())
    }
}

/// The archive of a path, piece by piece.
struct Pieces<'a> {
    work: &'a Work,
    path: &'a PlannedPath,
    restorer: Restorer,
    local: LocalChunks<'a>,
    /// Where the path's name follows from its bytes.
    check: Option<&'a mut FileCheck>,
    demand: &'a UnboundedSender<Wanted>,
    /// Pieces before it were taken, perhaps in an earlier try.
    taken: &'a mut usize,
    next: usize,
    at: u64,
}

impl Pieces<'_> {
    fn piece(&mut self, n: usize) -> Result<Vec<u8>, TransferError> {
        let piece = self.path.recipe.pieces[n];
        let slots = &self.work.slots;
        match self.path.origins[n] {
            Origin::Fetched if n < *self.taken => self.found_or_fetched(None, piece),
            Origin::Fetched => slots.take(&piece.id),
            Origin::FetchedBefore => slots.copy(&piece.id),
            Origin::Partial => {
                let partial = self.path.partial.as_ref();
                self.found_or_fetched(partial.and_then(|partial| partial.chunk(piece, self.at)), piece)
            }
            Origin::Local(place) => {
                let found = self.local.next(piece.id, place).map_err(|error| TransferError::Read {
                    path: self.path.info.path.clone(),
                    source: io::Error::other(error),
                })?;
                self.found_or_fetched(found, piece)
            }
        }
    }

    fn found_or_fetched(&self, found: Option<Vec<u8>>, piece: Piece) -> Result<Vec<u8>, TransferError> {
        if let Some(bytes) = found {
            return Ok(bytes);
        }
        let wanted = Wanted { id: piece.id, len: piece.len, first: false, again: true };
        self.demand.send(wanted).map_err(|_| TransferError::Cancelled)?;
        self.work.slots.copy(&piece.id)
    }
}

impl Blocks for Pieces<'_> {
    fn next_block(&mut self) -> io::Result<Option<Bytes>> {
        if self.next == self.path.recipe.pieces.len() {
            return Ok(None);
        }
        let mut bytes = self.piece(self.next).map_err(io::Error::other)?;
        self.restorer.restore(&mut bytes, self.at);
        if let Some(check) = &mut self.check {
            check.write_all(&bytes)?;
        }
        self.next += 1;
        self.at += bytes.len() as u64;
        if self.next > *self.taken {
            *self.taken = self.next;
            self.work.progress.archive_bytes_done.add(bytes.len() as u64);
        }
        Ok(Some(bytes.into()))
    }

    fn twin(&self, at: u64, size: u64) -> Option<PathBuf> {
        let Recipe { pieces, .. } = &*self.path.recipe;
        let (mut n, mut begin) = (self.next, self.at);
        if at < begin {
            n -= 1;
            begin -= u64::from(pieces[n].len);
        }
        // All of it lies in one archive, as far from where this one would begin there.
        let mut found = None;
        while begin < at + size {
            let Origin::Local(place) = self.path.origins.get(n)? else { return None };
            let shift = place.at.wrapping_sub(begin);
            if *found.get_or_insert((place.recipe, shift)) != (place.recipe, shift) {
                return None;
            }
            begin += u64::from(pieces[n].len);
            n += 1;
        }
        let (recipe, shift) = found?;
        self.local.file(recipe, at.wrapping_add(shift), size, self.restorer.hashes_in(at, size))
    }
}
