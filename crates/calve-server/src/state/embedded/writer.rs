//! The writer: one thread that decides and stores all changes, many at a time.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use super::disk::{OpenError, Store, is_full};
use super::{BATCH_MAX, Change, Content, Mirror, Request};
use crate::state::{Durability, Expect, Revision, StateError};

/// The tail goes into the database at this size, so that opening never reads much of it.
const KEPT_MAX_BYTES: u64 = 4 * 1024 * 1024;

pub(super) struct Writer {
    dir: PathBuf,
    /// None after a failed commit: the files are opened anew for the next change, to see what is there.
    store: Option<Store>,
    mirror: Arc<Mirror>,
}

/// Why a batch was not stored; every change of it gets one.
#[derive(Debug, Clone)]
enum Failure {
    Full,
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

/// A [`Failure`] that several answers share.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Shared(Arc<dyn std::error::Error + Send + Sync>);

impl Writer {
    pub(super) fn new(dir: PathBuf, store: Store, mirror: Arc<Mirror>) -> Self {
        Self { dir, store: Some(store), mirror }
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut batch = vec![first];
            batch.extend(inbox.try_iter().take(BATCH_MAX - 1));
            self.handle(batch);
        }
    }

    fn handle(&mut self, batch: Vec<Request>) {
        if let Err(failure) = self.reopen() {
            return batch.into_iter().for_each(|request| refuse(request.answer, &failure));
        }
        let durable = batch.iter().any(|request| request.durability == Durability::Now);
        let (changes, decided) = self.decide(batch);
        let stored = self.store(&changes, durable);
        if stored.is_ok()
            && let Some(last) = changes.last().map(|change| change.revision)
        {
            let mut content = self.mirror.write();
            changes.into_iter().for_each(|change| content.apply(change));
            drop(content);
            self.mirror.ring(last);
        }
        for (answer, result) in decided {
            match (&stored, result) {
                (Err(failure), Ok(_)) => refuse(answer, failure),
                (_, result) => drop(answer.send(result)),
            }
        }
    }

    /// Which of the requests may be done, each seeing those before it, and what to answer once they are stored.
    fn decide(&self, batch: Vec<Request>) -> (Vec<Change>, Vec<Decided>) {
        let content = self.mirror.read();
        let mut ahead: HashMap<String, Option<Revision>> = HashMap::new();
        let mut revision = content.revision;
        let mut changes = Vec::new();
        let mut decided = Vec::new();
        for request in batch {
            let current = current(&content, &ahead, &request.key);
            if !holds(request.expect, current) {
                decided.push((request.answer, Err(StateError::Conflict { key: request.key })));
                continue;
            }
            if request.value.is_some() || current.is_some() {
                revision += 1;
                ahead.insert(request.key.clone(), request.value.is_some().then_some(revision));
                changes.push(Change { revision, key: request.key, value: request.value });
            }
            decided.push((request.answer, Ok(revision)));
        }
        (changes, decided)
    }

    fn store(&mut self, changes: &[Change], durable: bool) -> Result<(), Failure> {
        let store = self.store.as_mut().expect("opened before deciding");
        if !durable && store.kept_bytes() < KEPT_MAX_BYTES && !store.needs_commit() {
            return if changes.is_empty() { Ok(()) } else { store.keep(changes).map_err(failure) };
        }
        if changes.is_empty() && store.kept_bytes() == 0 {
            return Ok(());
        }
        store.commit(changes).map_err(|error| {
            // After a failed write redb answers nothing any more, and whether the commit took place is not known.
            self.store = None;
            match error {
                redb::Error::Io(error) => failure(error),
                error => Failure::Other(Arc::new(error)),
            }
        })
    }

    /// Opens the files again after a failure, and takes over what they hold.
    fn reopen(&mut self) -> Result<(), Failure> {
        if self.store.is_some() {
            return Ok(());
        }
        let opened = Store::open(&self.dir).and_then(|store| Ok((store.load()?, store)));
        let (content, store) = opened.map_err(|error| match error {
            OpenError::Full => Failure::Full,
            error => Failure::Other(Arc::new(error)),
        })?;
        let revision = content.revision;
        *self.mirror.write() = content;
        self.mirror.ring(revision);
        self.store = Some(store);
        Ok(())
    }
}

type Decided = (tokio::sync::oneshot::Sender<Result<Revision, StateError>>, Result<Revision, StateError>);

fn current(content: &Content, ahead: &HashMap<String, Option<Revision>>, key: &str) -> Option<Revision> {
    match ahead.get(key) {
        Some(revision) => *revision,
        None => content.values.get(key).map(|(revision, _)| *revision),
    }
}

fn holds(expect: Expect, current: Option<Revision>) -> bool {
    match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Revision(revision) => current == Some(revision),
    }
}

fn failure(error: io::Error) -> Failure {
    if is_full(&error) { Failure::Full } else { Failure::Other(Arc::new(error)) }
}

fn refuse(answer: tokio::sync::oneshot::Sender<Result<Revision, StateError>>, failure: &Failure) {
    let error = match failure {
        Failure::Full => StateError::Full,
        Failure::Other(error) => StateError::Failed(Box::new(Shared(error.clone()))),
    };
    drop(answer.send(Err(error)));
}
