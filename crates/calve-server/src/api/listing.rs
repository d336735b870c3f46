//! The list of machines as JSON, each machine's part made once a change and the whole sent in pieces: listing 10,000
//! machines costs a copy, and never more memory than a piece.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use calve_core::MachineId;
use calve_wire::machine::PortMapping;
use tokio_util::sync::CancellationToken;

use super::show::{self, Said};
use crate::memory;
use crate::reconcile::records::Row;
use crate::state::Revision;

/// A piece is sent once it has this many bytes: some hundred machines, which take well below a millisecond to gather.
const PIECE_BYTES: usize = 64 * 1024;

/// What nobody asked for within this is forgotten at the latest within twice as long: whoever watches asks every few seconds,
/// and an idle server is small.
const ASKED_WITHIN: Duration = Duration::from_secs(8);

/// What was last listed. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Listing {
    parts: Arc<Mutex<HashMap<MachineId, Part>>>,
    /// Whether somebody asked since this was last looked at.
    asked: Arc<AtomicBool>,
}

/// One machine's JSON and what it was made from.
struct Part {
    revision: Revision,
    said: Said,
    published: Vec<PortMapping>,
    json: Box<[u8]>,
}

impl Part {
    fn new(row: &Row, said: Said, published: Vec<PortMapping>) -> Self {
        let summary = show::summary(&row.record(), said, &published);
        let json = serde_json::to_vec(&summary).expect("a summary holds nothing that JSON cannot say");
        Self { revision: row.revision, said, published, json: json.into() }
    }
}

impl Listing {
    /// Nothing yet, and forgotten again while nobody asks; to be called within a tokio runtime.
    pub fn start(shutdown: CancellationToken) -> Self {
        let listing = Self::default();
        let kept = listing.clone();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(ASKED_WITHIN).await;
                kept.forget_unasked().await;
            }
        }));
        listing
    }

    async fn forget_unasked(&self) {
        if self.asked.swap(false, Ordering::Relaxed) {
            return;
        }
        let parts = std::mem::take(&mut *self.parts());
        if !parts.is_empty() {
            drop(parts);
            let _ = tokio::task::spawn_blocking(memory::trim).await;
        }
    }

    /// A JSON array of the summaries of `rows`, piece by piece, each made when it is asked for. `observe` tells what a
    /// machine's agent said last and which of its ports are published.
    pub fn pieces<F>(&self, rows: Vec<Row>, observe: F) -> impl Iterator<Item = Bytes> + use<F>
    where
        F: Fn(MachineId) -> (Said, Vec<PortMapping>),
    {
        self.asked.store(true, Ordering::Relaxed);
        let listing = self.clone();
        let mut rows = rows.into_iter();
        let mut begun = false;
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
            let mut parts = listing.parts();
            while piece.len() < PIECE_BYTES {
                let Some(row) = rows.next() else {
                    piece.extend_from_slice(if begun { b"]" } else { b"[]" });
                    ended = true;
                    break;
                };
                let (said, published) = observe(row.id);
                let part = match parts.entry(row.id) {
                    Entry::Vacant(free) => free.insert(Part::new(&row, said, published)),
                    Entry::Occupied(known) => {
                        let part = known.into_mut();
                        if part.revision != row.revision || part.said != said || part.published != published {
                            *part = Part::new(&row, said, published);
                        }
                        part
                    }
                };
                piece.push(if begun { b',' } else { b'[' });
                begun = true;
                piece.extend_from_slice(&part.json);
            }
            Some(piece.into())
        })
    }

    /// Forgets the machines that are not among `rows`, which must be all.
    pub fn keep_only(&self, rows: &[Row]) {
        let mut parts = self.parts();
        if parts.len() > rows.len() {
            parts.retain(|id, _| rows.binary_search_by(|row| row.id.cmp(id)).is_ok());
            parts.shrink_to_fit();
        }
    }

    fn parts(&self) -> MutexGuard<'_, HashMap<MachineId, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
