//! The files behind the state: the database and the tail. The only file that knows redb.

use std::io;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::tail::Tail;
use super::{Change, Content, Revision};

/// The version of the tables' layout that this program writes. Older ones are read, a newer one is refused.
const FORMAT_VERSION: u64 = 1;
/// Pages that the database keeps in memory: reads are served by the mirror, so little suffices.
const CACHE_BYTES: usize = 1024 * 1024;

const VALUES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("values");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";

/// Why the state could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer calve wrote it.
    #[error("the state has format {found}, this program knows formats up to {FORMAT_VERSION}")]
    Newer {
        /// The format found.
        found: u64,
    },
    /// Another process has it open.
    #[error("the state is open in another process")]
    InUse,
    /// No space left.
    #[error("the state directory's disk is full")]
    Full,
    /// A file of it cannot be read or written.
    #[error("a file of the state cannot be opened")]
    Io(#[source] io::Error),
    /// The database is broken or of another kind.
    #[error("the state's database cannot be opened")]
    Database(#[source] Box<redb::Error>),
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Io(error) => error.into(),
            error => Self::Database(Box::new(error)),
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Io(error) }
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The open files.
pub(super) struct Store {
    database: Database,
    tail: Tail,
    /// What the tail holds and the database does not.
    pending: Vec<Change>,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("state.redb");
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(&path).map_err(lift)?;
        restrict(&path)?;
        let revision = prepare(&database)?;
        let mut tail = Tail::open(&dir.join("state.tail"))?;
        let pending = tail.read_after(revision)?;
        Ok(Self { database, tail, pending })
    }

    /// Everything, as of the last change.
    pub(super) fn load(&self) -> Result<Content, OpenError> {
        let mut content = load(&self.database)?;
        for change in &self.pending {
            content.apply(change.clone());
        }
        Ok(content)
    }

    /// Keeps the changes so that a killed process loses none of them; on an error none is kept.
    pub(super) fn keep(&mut self, changes: &[Change]) -> io::Result<()> {
        self.tail.append(changes)?;
        self.pending.extend_from_slice(changes);
        Ok(())
    }

    /// Syncs the changes and all that were kept; on an error it is not known whether they are there.
    pub(super) fn commit(&mut self, changes: &[Change]) -> Result<(), redb::Error> {
        let all = self.pending.iter().chain(changes);
        commit(&self.database, all)?;
        self.pending.clear();
        self.tail.clear();
        Ok(())
    }

    /// Bytes of changes that a commit would take along.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.tail.length_bytes()
    }

    /// Whether only [`Self::commit`] can take changes now.
    pub(super) fn needs_commit(&self) -> bool {
        self.tail.is_broken()
    }
}

fn lift(error: impl Into<redb::Error>) -> redb::Error {
    error.into()
}

fn restrict(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Checks the format, or writes it into a new database; gives the revision.
fn prepare(database: &Database) -> Result<Revision, OpenError> {
    let reading = database.begin_read().map_err(lift)?;
    match reading.open_table(META) {
        Ok(meta) => {
            let read = |key| Ok::<_, redb::Error>(meta.get(key).map_err(lift)?.map(|value| value.value()));
            match read(META_FORMAT)?.unwrap_or(FORMAT_VERSION) {
                found if found > FORMAT_VERSION => Err(OpenError::Newer { found }),
                _ => Ok(read(META_REVISION)?.unwrap_or(0)),
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => {
            commit(database, std::iter::empty())?;
            Ok(0)
        }
        Err(error) => Err(lift(error).into()),
    }
}

fn load(database: &Database) -> Result<Content, OpenError> {
    let reading = database.begin_read().map_err(lift)?;
    let values = reading.open_table(VALUES).map_err(lift)?;
    let meta = reading.open_table(META).map_err(lift)?;
    let revision = meta.get(META_REVISION).map_err(lift)?.map_or(0, |revision| revision.value());
    let rows = values.iter().map_err(lift)?.map(|row| {
        let (key, value) = row.map_err(lift)?;
        let (revision, bytes) = value.value();
        Ok((key.value().to_owned(), (revision, Bytes::copy_from_slice(bytes))))
    });
    // Gathered and not inserted one by one: a map that is made at once has no room to spare.
    let values = rows.collect::<Result<_, redb::Error>>()?;
    Ok(Content { values, revision, ..Content::default() })
}

fn commit<'a>(database: &Database, changes: impl Iterator<Item = &'a Change>) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    {
        let mut values = writing.open_table(VALUES)?;
        let mut meta = writing.open_table(META)?;
        let mut last = None;
        for change in changes {
            match &change.value {
                Some(value) => {
                    values.insert(change.key.as_str(), (change.revision, &value[..]))?;
                }
                None => {
                    values.remove(change.key.as_str())?;
                }
            }
            last = Some(change.revision);
        }
        meta.insert(META_FORMAT, FORMAT_VERSION)?;
        if let Some(revision) = last {
            meta.insert(META_REVISION, revision)?;
        }
    }
    writing.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let database = Database::open(dir.path().join("state.redb")).unwrap();
        let writing = database.begin_write().unwrap();
        writing.open_table(META).unwrap().insert(META_FORMAT, FORMAT_VERSION + 1).unwrap();
        writing.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let error = Store::open(dir.path()).err().expect("a newer format");
            assert!(matches!(error, OpenError::Newer { found } if found == FORMAT_VERSION + 1), "{error}");
        }
    }

    #[test]
    fn a_second_opening_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()).err(), Some(OpenError::InUse)));
    }
}
