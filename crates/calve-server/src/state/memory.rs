//! State in memory: for tests and the simulator, with faults where wanted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Changes, Durability, Entry, Expect, Revision, State, StateError, check_key, check_value};

/// Makes operations slow or fail.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Before the operation; an error: it was not done.
    async fn before(&self, operation: Operation) -> Result<(), StateError>;
    /// After the operation; an error: it was done, but its answer was lost.
    async fn after(&self, operation: Operation) -> Result<(), StateError>;
}

/// What is being done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `get`, `list` or `list_since`.
    Read,
    /// `put` or `delete`.
    Change,
}

/// A store in memory.
#[derive(Default)]
pub struct MemoryState {
    shared: Arc<Shared>,
    faults: Option<Arc<dyn Faults>>,
}

struct Shared {
    content: Mutex<Content>,
    revision: watch::Sender<Revision>,
}

#[derive(Default)]
struct Content {
    values: BTreeMap<String, (Revision, Bytes)>,
    /// The key of each change; of each key only the last.
    changes: BTreeMap<Revision, String>,
    /// When keys without a value lost it.
    removed: BTreeMap<String, Revision>,
    revision: Revision,
}

impl Default for Shared {
    fn default() -> Self {
        Self { content: Mutex::default(), revision: watch::Sender::new(0) }
    }
}

impl MemoryState {
    /// The same store, seen through operations that `faults` may spoil.
    #[must_use]
    pub fn with_faults(&self, faults: Arc<dyn Faults>) -> Self {
        Self { shared: self.shared.clone(), faults: Some(faults) }
    }

    /// Every key with its value, without faults.
    pub fn snapshot(&self) -> Vec<Entry> {
        self.content().entries("").collect()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().expect("no holder of the content's lock panics")
    }

    async fn before(&self, operation: Operation) -> Result<(), StateError> {
        match &self.faults {
            Some(faults) => faults.before(operation).await,
            None => Ok(()),
        }
    }

    async fn after(&self, operation: Operation) -> Result<(), StateError> {
        match &self.faults {
            Some(faults) => faults.after(operation).await,
            None => Ok(()),
        }
    }

    async fn change(&self, key: &str, value: Option<Bytes>, expect: Expect) -> Result<Revision, StateError> {
        self.before(Operation::Change).await?;
        let revision = self.content().change(key, value, expect)?;
        self.shared.revision.send_replace(revision);
        self.after(Operation::Change).await?;
        Ok(revision)
    }
}

impl Content {
    fn entries<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.values
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, (revision, value))| entry(key, *revision, value))
    }

    fn change(&mut self, key: &str, value: Option<Bytes>, expect: Expect) -> Result<Revision, StateError> {
        let current = self.values.get(key).map(|(revision, _)| *revision);
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current == Some(revision),
        };
        if !holds {
            return Err(StateError::Conflict { key: key.to_owned() });
        }
        self.revision += 1;
        let before = current.or_else(|| self.removed.remove(key));
        if let Some(before) = before {
            self.changes.remove(&before);
        }
        self.changes.insert(self.revision, key.to_owned());
        match value {
            Some(value) => drop(self.values.insert(key.to_owned(), (self.revision, value))),
            None => {
                self.values.remove(key);
                self.removed.insert(key.to_owned(), self.revision);
            }
        }
        Ok(self.revision)
    }
}

fn entry(key: &str, revision: Revision, value: &Bytes) -> Entry {
    Entry { key: key.to_owned(), revision, value: value.clone() }
}

#[async_trait]
impl State for MemoryState {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StateError> {
        self.before(Operation::Read).await?;
        Ok(self.content().values.get(key).map(|(revision, value)| entry(key, *revision, value)))
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StateError> {
        self.before(Operation::Read).await?;
        let content = self.content();
        Ok((content.entries(prefix).collect(), content.revision))
    }

    async fn list_since(&self, prefix: &str, seen: Revision) -> Result<Option<Changes>, StateError> {
        self.before(Operation::Read).await?;
        let content = self.content();
        let mut changes = Changes { revision: content.revision, ..Changes::default() };
        let changed = content.changes.range(seen + 1..).map(|(_, key)| key);
        for key in changed.filter(|key| key.starts_with(prefix)) {
            match content.values.get(key) {
                Some((revision, value)) => changes.set.push(entry(key, *revision, value)),
                None => changes.removed.push(key.clone()),
            }
        }
        Ok(Some(changes))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        _durability: Durability,
    ) -> Result<Revision, StateError> {
        check_key(key)?;
        check_value(key, &value)?;
        self.change(key, Some(value), expect).await
    }

    async fn delete(
        &self,
        key: &str,
        expect: Expect,
        _durability: Durability,
    ) -> Result<Revision, StateError> {
        self.change(key, None, expect).await
    }

    async fn changed(&self, seen: Revision) -> Revision {
        let mut revision = self.shared.revision.subscribe();
        *revision.wait_for(|revision| *revision > seen).await.expect("the sender lives as long as the store")
    }
}
