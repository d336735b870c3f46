//! Which hosts may have machines of this server: a file a machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_node::DriverError;
use calve_provider::ssh::Target;
use calve_wire::agent::Remaining;
use serde::{Deserialize, Serialize};

use super::failed;

/// The book.
pub(super) struct Book(PathBuf);

/// A machine on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The host, as a user writes it.
    pub target: String,
    /// Which creation of the machine.
    pub attempt: u32,
    /// When the machine is ended at the latest; none where its lease has no end.
    pub end_unix_ms: Option<u64>,
    /// What the host is called here where it is the machine itself; none for a sandbox on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<String>,
}

impl Entry {
    pub fn new(target: &Target, attempt: u32, remaining: Remaining, now: Timestamp) -> Self {
        Self { target: target.to_string(), attempt, end_unix_ms: None, adopted: None }
            .with_lease(remaining, now)
    }

    /// The same where it has ended by now: somebody ends it before its lease does.
    pub fn ended(self, now: Timestamp) -> Self {
        Self { end_unix_ms: Some(self.end_unix_ms.map_or(now.0, |end| end.min(now.0))), ..self }
    }

    /// The same with another lease.
    pub fn with_lease(self, remaining: Remaining, now: Timestamp) -> Self {
        let left = remaining.until_deadline_ms.map(|left| left.saturating_add(remaining.grace_ms));
        Self { end_unix_ms: left.map(|left| now.0.saturating_add(left)), ..self }
    }

    /// Whether its lease ended so long ago.
    pub fn is_over(&self, now: Timestamp, since: Duration) -> bool {
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.end_unix_ms.is_some_and(|end| end.saturating_add(since_ms) < now.0)
    }
}

impl Book {
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    fn file(&self, id: MachineId) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// Every machine.
    pub fn all(&self) -> Result<BTreeMap<MachineId, Entry>, DriverError> {
        let unreadable = |error| failed("the book of borrowed hosts cannot be read").caused_by(error);
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            let name = entry.map_err(unreadable)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok()) else {
                continue;
            };
            // One that goes in this moment is none.
            all.extend(self.get(id).map(|entry| (id, entry)));
        }
        Ok(all)
    }

    /// What is written of the machine.
    pub fn get(&self, id: MachineId) -> Option<Entry> {
        serde_json::from_slice(&fs::read(self.file(id)).ok()?).ok()
    }

    /// Writes it down, so that it survives a crash of this host as well.
    pub fn write(&self, id: MachineId, entry: &Entry) -> Result<(), DriverError> {
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            let (aside, place) = (self.0.join(format!("{id}.new")), self.file(id));
            let mut file = fs::File::create(&aside)?;
            file.write_all(&serde_json::to_vec(entry).expect("names and numbers"))?;
            file.sync_all()?;
            fs::rename(aside, place)?;
            fs::File::open(&self.0)?.sync_all()
        };
        write().map_err(|error| failed("the book of borrowed hosts cannot be written").caused_by(error))
    }

    /// Strikes it out; absence is success.
    pub fn remove(&self, id: MachineId) -> Result<(), DriverError> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("the book of borrowed hosts cannot be written").caused_by(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_lease_is_over_after_its_grace() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path().join("machines"));
        let id = MachineId::new(Timestamp(1), 1);
        assert!(book.all().unwrap().is_empty() && book.get(id).is_none());
        let target = "ssh://root@pi:2222".parse().unwrap();
        let remaining = Remaining { until_deadline_ms: Some(1000), grace_ms: 500 };
        let entry = Entry::new(&target, 2, remaining, Timestamp(10_000));
        book.write(id, &entry).unwrap();
        assert_eq!(book.all().unwrap(), BTreeMap::from([(id, entry.clone())]));
        assert!(!entry.is_over(Timestamp(12_500), Duration::from_secs(1)));
        assert!(entry.is_over(Timestamp(12_501), Duration::from_secs(1)));
        let endless = entry.with_lease(Remaining { until_deadline_ms: None, grace_ms: 0 }, Timestamp(0));
        assert!(!endless.is_over(Timestamp(u64::MAX), Duration::ZERO));
        let ended = endless.ended(Timestamp(5000)).ended(Timestamp(9000));
        assert!(ended.is_over(Timestamp(5001), Duration::ZERO));
        book.remove(id).unwrap();
        book.remove(id).unwrap();
        assert!(book.all().unwrap().is_empty());
    }
}
