//! State in one file of this host: a mirror in memory for reads, a tail file for changes that are `Soon`, a database for
//! changes that are `Now`.
//!
//! ```text
//!  put Soon ──▶ state.tail (written, not synced) ──▶ mirror          a killed process finds them in the page cache
//!  put Now ───▶ state.redb (tail and batch in one synced commit) ──▶ mirror, tail emptied
//!  get, list ─▶ mirror
//! ```
//! One writer thread takes up to [`BATCH_MAX`] waiting changes a commit, so that many writers share one sync.

mod disk;
mod tail;
mod writer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, RwLock, mpsc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::{Changes, Durability, Entry, Expect, Revision, State, StateError, check_key, check_value};
pub use disk::OpenError;

/// Most changes in one commit: bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 512;

/// Changes that [`State::list_since`] remembers: every reader that is awake asks far more often.
const REMEMBERED_MAX: usize = 16 * 1024;

/// The state of one server, in its data directory. Dropping it waits for the writer.
pub struct EmbeddedState {
    mirror: Arc<Mirror>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

/// What all readers see: every change that was acknowledged.
struct Mirror {
    content: RwLock<Content>,
    revision: watch::Sender<Revision>,
}

#[derive(Default)]
struct Content {
    values: BTreeMap<String, (Revision, Bytes)>,
    revision: Revision,
    /// The keys of the last changes.
    changed: VecDeque<(Revision, String)>,
}

/// A change that somebody wants.
struct Request {
    key: String,
    /// None removes it.
    value: Option<Bytes>,
    expect: Expect,
    durability: Durability,
    answer: oneshot::Sender<Result<Revision, StateError>>,
}

/// A change that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    revision: Revision,
    key: String,
    value: Option<Bytes>,
}

impl Content {
    fn apply(&mut self, change: Change) {
        self.revision = change.revision;
        if self.changed.len() == REMEMBERED_MAX {
            self.changed.pop_front();
        }
        self.changed.push_back((change.revision, change.key.clone()));
        match change.value {
            Some(value) => self.values.insert(change.key, (change.revision, value)),
            None => self.values.remove(&change.key),
        };
    }

    fn since(&self, prefix: &str, seen: Revision) -> Option<Changes> {
        let mut changes = Changes { revision: self.revision, ..Changes::default() };
        if seen >= self.revision {
            return Some(changes);
        }
        let (oldest, _) = self.changed.front()?;
        if seen + 1 < *oldest {
            return None;
        }
        let mut removed = BTreeSet::new();
        let behind = usize::try_from(seen + 1 - oldest).ok()?;
        for (revision, key) in self.changed.range(behind..).filter(|(_, key)| key.starts_with(prefix)) {
            match self.values.get(key) {
                Some((latest, value)) if latest == revision => changes.set.push(entry(key, *latest, value)),
                // A later change of it follows.
                Some(_) => {}
                None => drop(removed.insert(key)),
            }
        }
        changes.removed = removed.into_iter().cloned().collect();
        Some(changes)
    }
}

fn entry(key: &str, revision: Revision, value: &Bytes) -> Entry {
    Entry { key: key.to_owned(), revision, value: value.clone() }
}

impl EmbeddedState {
    /// Opens or creates the state in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let store = disk::Store::open(dir)?;
        let content = store.load()?;
        let mirror = Arc::new(Mirror {
            revision: watch::Sender::new(content.revision),
            content: RwLock::new(content),
        });
        let (requests, inbox) = mpsc::channel();
        let writer = writer::Writer::new(dir.to_owned(), store, mirror.clone());
        let writer = std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(OpenError::Io)?;
        Ok(Self { mirror, requests: Some(requests), writer: Some(writer) })
    }

    async fn change(
        &self,
        key: &str,
        value: Option<Bytes>,
        expect: Expect,
        durability: Durability,
    ) -> Result<Revision, StateError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { key: key.to_owned(), value, expect, durability, answer };
        let gone = || StateError::Failed("the state's writer has ended".into());
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Drop for EmbeddedState {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Mirror {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Content> {
        self.content.read().expect("no holder of the mirror's lock panics")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Content> {
        self.content.write().expect("no holder of the mirror's lock panics")
    }

    fn ring(&self, revision: Revision) {
        self.revision.send_replace(revision);
    }
}

#[async_trait]
impl State for EmbeddedState {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StateError> {
        check_key(key)?;
        let content = self.mirror.read();
        Ok(content.values.get(key).map(|(revision, value)| entry(key, *revision, value)))
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StateError> {
        let content = self.mirror.read();
        let entries = content
            .values
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (revision, value))| entry(key, *revision, value))
            .collect();
        Ok((entries, content.revision))
    }

    async fn list_since(&self, prefix: &str, seen: Revision) -> Result<Option<Changes>, StateError> {
        Ok(self.mirror.read().since(prefix, seen))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> Result<Revision, StateError> {
        check_key(key)?;
        check_value(key, &value)?;
        self.change(key, Some(value), expect, durability).await
    }

    async fn delete(
        &self,
        key: &str,
        expect: Expect,
        durability: Durability,
    ) -> Result<Revision, StateError> {
        check_key(key)?;
        self.change(key, None, expect, durability).await
    }

    async fn changed(&self, seen: Revision) -> Revision {
        let mut revision = self.mirror.revision.subscribe();
        match revision.wait_for(|revision| *revision > seen).await {
            Ok(revision) => *revision,
            Err(_) => unreachable!("the mirror outlives this call and holds the sender"),
        }
    }
}
