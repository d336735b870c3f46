//! The records of all machines; shared by the loop and the API. Machines are many and most of them rarely asked for: of each the
//! view keeps what decisions need, and the bytes that the state holds as well, parsed when somebody asks. A parsed record
//! takes several times as much.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use calve_core::plan::Wait;
use calve_core::{Machine, MachineId, MachineName, Timestamp};
use calve_wire::record::{MachineRecord, VoidRecord};

use super::MACHINES;
use crate::state::{Entry, Revision, State, StateError};

/// A handle on the parsed records; clones share them.
#[derive(Clone, Default)]
pub struct View(Arc<Mutex<Content>>);

/// The records of one moment, and whatever was noted after it.
#[derive(Default)]
pub(in crate::reconcile) struct Content {
    /// The moment.
    pub seen: Revision,
    records: BTreeMap<MachineId, (Revision, Kept)>,
    /// The records as decisions see them.
    pub machines: BTreeMap<MachineId, Machine>,
    names: BTreeMap<MachineName, MachineId>,
    numbers: BTreeSet<u32>,
    /// Numbers that are being claimed in this process.
    reserved: BTreeSet<u32>,
    /// Keys whose values no version that this program knows wrote.
    unreadable: BTreeMap<String, Revision>,
    voids: BTreeMap<MachineId, (Revision, Timestamp)>,
    /// In the order of their machines.
    waits: Vec<Wait>,
}

/// A number that nobody else in this process claims; dropped, it is free again.
pub(super) struct Reserved {
    view: View,
    pub number: u32,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.view.content().reserved.remove(&self.number);
    }
}

/// A record as it is stored; it was parsed once, so it can be.
#[derive(Clone)]
struct Kept {
    value: Bytes,
    living: bool,
}

impl Kept {
    fn record(&self) -> Arc<MachineRecord> {
        Arc::new(MachineRecord::from_json(&self.value).expect("these very bytes were parsed before"))
    }
}

/// A machine in a list: its record is parsed only for who needs it.
#[derive(Clone)]
pub struct Row {
    /// The machine.
    pub id: MachineId,
    /// When its record last changed; tells whether what was made from it is still right.
    pub revision: Revision,
    kept: Kept,
}

impl Row {
    /// Its record.
    pub fn record(&self) -> Arc<MachineRecord> {
        self.kept.record()
    }
}

/// What became of a record.
pub enum Newer {
    /// Nothing.
    Same,
    /// It is this one now.
    Changed(Revision, Arc<MachineRecord>),
    /// There is none any more.
    Gone,
}

enum Parsed {
    Record(Box<MachineRecord>),
    Void(MachineId, Timestamp),
}

impl View {
    /// Brings the view up to date; parses only what changed.
    pub async fn refresh(&self, state: &dyn State) -> Result<(), StateError> {
        let seen = self.seen();
        if seen > 0
            && let Some(changes) = state.list_since(MACHINES, seen).await?
        {
            let mut content = self.content();
            // A later moment may have been read meanwhile.
            if changes.revision > content.seen {
                changes.removed.iter().for_each(|key| content.remove(key));
                changes.set.iter().for_each(|entry| content.set(entry));
                content.seen = changes.revision;
            }
            return Ok(());
        }
        let (entries, revision) = state.list(MACHINES).await?;
        let mut content = self.content();
        if revision > content.seen {
            content.remove_others(&entries, revision);
            entries.iter().for_each(|entry| content.set(entry));
            content.seen = revision;
            content.pack();
        }
        Ok(())
    }

    /// The revision that the view shows at least.
    pub fn seen(&self) -> Revision {
        self.content().seen
    }

    /// The record of the machine with this name or id.
    pub fn find(&self, name_or_id: &str) -> Option<Arc<MachineRecord>> {
        let kept = {
            let content = self.content();
            let named =
                name_or_id.parse().ok().and_then(|name: MachineName| content.names.get(&name).copied());
            let id = named.or_else(|| name_or_id.parse().ok())?;
            content.records.get(&id)?.1.clone()
        };
        Some(kept.record())
    }

    /// Every machine's record, the oldest first.
    pub fn all(&self) -> Vec<Arc<MachineRecord>> {
        self.rows(true).iter().map(Row::record).collect()
    }

    /// The records of the machines that have not ended, the oldest first.
    pub fn all_living(&self) -> Vec<Arc<MachineRecord>> {
        self.rows(false).iter().map(Row::record).collect()
    }

    /// The machines that have not ended.
    pub fn living_ids(&self) -> BTreeSet<MachineId> {
        self.rows(false).iter().map(|row| row.id).collect()
    }

    /// What became of a machine's record since it had this revision.
    pub fn newer_than(&self, id: MachineId, known: Option<Revision>) -> Newer {
        let row = match self.content().records.get(&id) {
            None => return Newer::Gone,
            Some((revision, _)) if Some(*revision) == known => return Newer::Same,
            Some((revision, kept)) => Row { id, revision: *revision, kept: kept.clone() },
        };
        Newer::Changed(row.revision, row.record())
    }

    /// The machines, the oldest first; those that have ended only where they are wanted.
    pub fn rows(&self, with_ended: bool) -> Vec<Row> {
        let content = self.content();
        let wanted = content.records.iter();
        let wanted = wanted.filter(|(_, (_, kept))| with_ended || kept.living);
        wanted
            .map(|(id, (revision, kept))| Row { id: *id, revision: *revision, kept: kept.clone() })
            .collect()
    }

    /// How many machines have not ended.
    pub fn living(&self) -> usize {
        self.content().machines.values().filter(|machine| !machine.state.is_terminal()).count()
    }

    /// Whether every record could be read.
    pub fn is_complete(&self) -> bool {
        self.content().complete()
    }

    /// What the loop waits for with this machine, in words for people.
    pub fn waits_for(&self, id: MachineId) -> Option<&'static str> {
        let content = self.content();
        let at = content.waits.binary_search_by_key(&id, |wait| wait.id).ok()?;
        Some(content.waits[at].on.as_str())
    }

    /// Keys of records that cannot be read.
    pub fn unreadable(&self) -> Vec<String> {
        self.content().unreadable.keys().cloned().collect()
    }

    /// Shows a record that this process has just written; `value` is what it wrote.
    pub(in crate::reconcile) fn note(&self, revision: Revision, record: &MachineRecord, value: Bytes) {
        let mut content = self.content();
        // An older one was shown already, if it has not even been removed again.
        if revision > content.seen {
            content.keep(revision, record, value);
        }
    }

    pub(in crate::reconcile) fn set_waits(&self, mut waits: Vec<Wait>) {
        // They come in order, which costs next to nothing to sort.
        waits.sort_by_key(|wait| wait.id);
        let former = std::mem::replace(&mut self.content().waits, waits);
        drop(former);
    }

    pub(in crate::reconcile) fn record(&self, id: MachineId) -> Option<(Revision, Arc<MachineRecord>)> {
        let kept = self.content().records.get(&id).cloned();
        kept.map(|(revision, kept)| (revision, kept.record()))
    }

    pub(super) fn voids(&self) -> Vec<(MachineId, Revision, Timestamp)> {
        self.content().voids.iter().map(|(id, (revision, at))| (*id, *revision, *at)).collect()
    }

    /// The smallest number that no machine has, nobody in this process claims, and that is not in `skip`.
    pub(super) fn reserve_number(&self, skip: &BTreeSet<u32>) -> Reserved {
        let mut content = self.content();
        let taken = |n: &u32| content.numbers.contains(n) || content.reserved.contains(n) || skip.contains(n);
        let number = (1..).find(|n| !taken(n)).expect("there are fewer machines than numbers");
        content.reserved.insert(number);
        Reserved { view: self.clone(), number }
    }

    pub(in crate::reconcile) fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("no holder of the view's lock panics")
    }
}

impl Content {
    /// Whether every record could be read.
    pub fn complete(&self) -> bool {
        self.unreadable.is_empty()
    }

    /// The machine as a list has it.
    pub fn row(&self, id: MachineId) -> Option<Row> {
        self.records.get(&id).map(|(revision, kept)| Row { id, revision: *revision, kept: kept.clone() })
    }

    fn set(&mut self, entry: &Entry) {
        let Some(id) = id_of(&entry.key) else {
            self.unreadable.insert(entry.key.clone(), entry.revision);
            return;
        };
        let known = self.records.get(&id).is_some_and(|(revision, _)| *revision >= entry.revision)
            || self.unreadable.get(&entry.key).is_some_and(|revision| *revision >= entry.revision);
        if known {
            return;
        }
        self.unreadable.remove(&entry.key);
        match parse(id, &entry.value) {
            Some(Parsed::Record(record)) => self.keep(entry.revision, &record, entry.value.clone()),
            Some(Parsed::Void(id, at)) => {
                // The record that was there has been removed meanwhile.
                self.remove(&entry.key);
                self.voids.insert(id, (entry.revision, at));
            }
            None => {
                tracing::error!(key = entry.key, "a record cannot be read; unknown machines are left alone");
                self.unreadable.insert(entry.key.clone(), entry.revision);
            }
        }
    }

    /// Keeps a record; `value` is how the state holds it.
    fn keep(&mut self, revision: Revision, record: &MachineRecord, value: Bytes) {
        let id = record.id;
        if self.records.get(&id).is_some_and(|(known, _)| *known >= revision) {
            return;
        }
        if !self.records.contains_key(&id) {
            self.names.insert(record.name.clone(), id);
            self.numbers.extend(record.name.number());
        }
        self.machines.insert(id, record.to_machine());
        self.records.insert(id, (revision, Kept { value, living: !record.state.is_terminal() }));
    }

    /// Makes the maps anew: one that is made at once has no room to spare, one that grew in order is half empty.
    fn pack(&mut self) {
        self.records = std::mem::take(&mut self.records).into_iter().collect();
        self.machines = std::mem::take(&mut self.machines).into_iter().collect();
        self.names = std::mem::take(&mut self.names).into_iter().collect();
    }

    fn remove(&mut self, key: &str) {
        self.unreadable.remove(key);
        let Some(id) = id_of(key) else { return };
        self.voids.remove(&id);
        self.records.remove(&id);
        let Some(machine) = self.machines.remove(&id) else { return };
        if self.names.get(&machine.name) == Some(&id) {
            self.names.remove(&machine.name);
            if let Some(number) = machine.name.number() {
                self.numbers.remove(&number);
            }
        }
    }

    /// Removes what a list of everything at `revision` does not show.
    fn remove_others(&mut self, entries: &[Entry], revision: Revision) {
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let records = self.records.iter().filter(|(_, (noted, _))| *noted <= revision);
        let keys = records.map(|(id, _)| super::machine_key(*id));
        let keys = keys.chain(self.unreadable.keys().cloned());
        let keys = keys.chain(self.voids.keys().map(|id| super::machine_key(*id)));
        let gone: Vec<String> = keys.filter(|key| !listed.contains(key.as_str())).collect();
        gone.iter().for_each(|key| self.remove(key));
    }
}

fn id_of(key: &str) -> Option<MachineId> {
    key.strip_prefix(MACHINES)?.parse().ok()
}

fn parse(id: MachineId, value: &[u8]) -> Option<Parsed> {
    match MachineRecord::from_json(value) {
        Ok(record) if record.id == id => Some(Parsed::Record(Box::new(record))),
        _ => {
            let void: VoidRecord = serde_json::from_slice(value).ok()?;
            Some(Parsed::Void(id, Timestamp(void.void_unix_ms)))
        }
    }
}
