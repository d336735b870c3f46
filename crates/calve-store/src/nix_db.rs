//! Nix's database, read only: which paths are valid and what they refer to (`src/libstore/schema.sql` of Nix).
//!
//! SQLite in write-ahead mode needs a shared memory file beside the database even to read it, and only who may write
//! there can make one. Nix removes it whenever nobody has the database open. Then nothing is being written, and the file
//! is read as immutable; that nothing changed meanwhile is checked afterwards. What is left goes through `nix-store`.

mod infos;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::store_path::{HASH_CHARS, STORE_DIR};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::StoreError;

/// How long a query waits for a writer that holds the database.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the name begins in a store path as text, counted from 1 as SQLite does: behind the directory, a slash, the hash
/// and a dash.
const NAME_AT: i64 = (STORE_DIR.len() + 1 + HASH_CHARS + 1 + 1) as i64;

/// Nix's database.
#[derive(Debug)]
pub struct NixDb {
    path: PathBuf,
    program: PathBuf,
    /// The connection that is kept from the last query, with that of which it reads.
    kept: Mutex<Option<(Source, Connection)>>,
}

/// Valid paths with everything that they refer to.
#[derive(Debug, Default)]
pub struct Requisites {
    /// All of them, the roots included, in no order.
    pub paths: Vec<StorePath>,
    /// Paths that refer to something that the database no longer knows.
    pub broken: Vec<StorePath>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// A file in the state in which nobody is writing to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settled {
    id: FileId,
    size_bytes: u64,
    mtime: (i64, i64),
}

/// What a connection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The database as one of many that read and write it.
    Shared(FileId),
    /// A file that does not change.
    Immutable(Settled),
}

impl NixDb {
    /// The database at `path`; `program` is asked where it cannot be read directly.
    pub fn new(path: PathBuf, program: PathBuf) -> Self {
        Self { path, program, kept: Mutex::new(None) }
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The program that is asked and told where the file does not do.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether there is a Nix on this host.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether Nix calls the path valid.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, StoreError> {
        let known = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM ValidPaths WHERE path = ?")?;
            statement.exists([path.to_string()])
        })?;
        known.map_or_else(|| Ok(self.ask_validity(std::slice::from_ref(path))?.is_empty()), Ok)
    }

    /// Whether a valid path may have this name; `true` where that is costly to know.
    pub fn may_hold(&self, name: &str) -> Result<bool, StoreError> {
        if !self.exists() {
            return Ok(false);
        }
        let held = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM ValidPaths WHERE substr(path, ?) = ?")?;
            statement.exists((NAME_AT, name))
        })?;
        Ok(held.unwrap_or(true))
    }

    /// The closure of `roots`; roots that are not valid are left out.
    pub fn requisites(&self, roots: &[StorePath]) -> Result<Requisites, StoreError> {
        let texts: Vec<String> = roots.iter().map(StorePath::to_string).collect();
        let roots_json = serde_json::to_string(&texts).expect("plain text");
        match self.query(|db| closure_rows(db, &roots_json))? {
            Some(rows) => {
                let paths: Result<_, _> = rows.paths.iter().map(|path| self.parse(path)).collect();
                let broken: Result<_, _> = rows.broken.iter().map(|path| self.parse(path)).collect();
                Ok(Requisites { paths: paths?, broken: broken? })
            }
            None => self.ask_requisites(roots),
        }
    }

    /// A path among `closure` that refers to `path`, if the database names one.
    pub fn referrer(
        &self,
        path: &StorePath,
        closure: &BTreeSet<StorePath>,
    ) -> Result<Option<StorePath>, StoreError> {
        let rows = self.query(|db| {
            let mut statement = db.prepare_cached(
                "SELECT p.path FROM ValidPaths t JOIN Refs ON reference = t.id JOIN ValidPaths p ON p.id = referrer
                 WHERE t.path = ? AND p.id <> t.id ORDER BY p.path",
            )?;
            let rows = statement.query_map([path.to_string()], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let rows = match rows {
            Some(rows) => rows,
            None => self.ask(&["--query", "--referrers"], std::slice::from_ref(path))?,
        };
        for row in rows {
            let referrer = self.parse(&row)?;
            if closure.contains(&referrer) && referrer != *path {
                return Ok(Some(referrer));
            }
        }
        Ok(None)
    }

    fn parse(&self, text: &str) -> Result<StorePath, StoreError> {
        let damaged = |error: calve_nix::StorePathError| StoreError::Damaged {
            path: self.path.clone(),
            message: error.to_string(),
        };
        StorePath::parse(text).map_err(damaged)
    }

    /// Runs a query; none where the database cannot be read directly.
    fn query<T>(&self, query: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<Option<T>, StoreError> {
        let shared = || file_id(&self.path).map(Source::Shared);
        let immutable = || settled(&self.path).map(Source::Immutable);
        let in_use = beside(&self.path, "-shm").exists();
        let sources = if in_use { [shared(), immutable()] } else { [immutable(), shared()] };
        for source in sources.into_iter().flatten() {
            match self.query_source(source, &query) {
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) => {}
                Err(error) if cannot_open(&error) => {}
                Err(source) => return Err(StoreError::NixDb { path: self.path.clone(), source }),
            }
        }
        Ok(None)
    }

    /// None where the file changed under the query: then neither answer nor error would mean anything.
    fn query_source<T>(
        &self,
        source: Source,
        query: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match kept.take() {
            Some((kept_source, connection)) if kept_source == source => connection,
            _ => connect(&self.path, source)?,
        };
        let answer = query(&connection);
        if let Source::Immutable(before) = source
            && settled(&self.path) != Some(before)
        {
            return Ok(None);
        }
        let answer = answer?;
        *kept = Some((source, connection));
        Ok(Some(answer))
    }

    fn ask_requisites(&self, roots: &[StorePath]) -> Result<Requisites, StoreError> {
        let unknown = self.ask_validity(roots)?;
        let valid: Vec<_> = roots.iter().filter(|root| !unknown.contains(root)).cloned().collect();
        if valid.is_empty() {
            return Ok(Requisites::default());
        }
        let lines = self.ask(&["--query", "--requisites"], &valid)?;
        let paths: Result<_, _> = lines.iter().map(|line| self.parse(line)).collect();
        Ok(Requisites { paths: paths?, broken: Vec::new() })
    }

    /// Which of `paths` are not valid.
    fn ask_validity(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, StoreError> {
        let lines = self.ask(&["--check-validity", "--print-invalid"], paths)?;
        lines.iter().map(|line| self.parse(line)).collect()
    }

    fn ask(&self, arguments: &[&str], paths: &[StorePath]) -> Result<Vec<String>, StoreError> {
        let failed = |message: String| StoreError::NixCommand { path: self.path.clone(), message };
        let mut command = Command::new(&self.program);
        command.args(arguments).args(paths.iter().map(StorePath::to_string));
        let output =
            command.output().map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
            return Err(failed(last.trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

struct Rows {
    paths: Vec<String>,
    broken: Vec<String>,
}

fn closure_rows(db: &Connection, roots_json: &str) -> rusqlite::Result<Rows> {
    let mut statement = db.prepare_cached(
        "WITH RECURSIVE closure(id) AS (
             SELECT id FROM ValidPaths WHERE path IN (SELECT value FROM json_each(?))
             UNION SELECT reference FROM Refs JOIN closure ON referrer = id)
         SELECT closure.id, path FROM closure LEFT JOIN ValidPaths ON ValidPaths.id = closure.id",
    )?;
    let mut rows = statement.query([roots_json])?;
    let (mut paths, mut broken) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        match row.get(1)? {
            Some(path) => paths.push(path),
            None => broken.extend(referrer_of_id(db, row.get(0)?)?),
        }
    }
    Ok(Rows { paths, broken })
}

fn referrer_of_id(db: &Connection, id: i64) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT path FROM Refs JOIN ValidPaths ON id = referrer WHERE reference = ? ORDER BY path";
    db.query_row(sql, [id], |row| row.get(0)).optional()
}

fn cannot_open(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly)
    )
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file_id(path: &Path) -> Option<FileId> {
    let metadata = fs::metadata(path).ok()?;
    Some(FileId { device: metadata.dev(), inode: metadata.ino() })
}

/// The database's state; none while something is being written, which shows as a write-ahead log or a rollback journal
/// that is not empty.
fn settled(path: &Path) -> Option<Settled> {
    let journals = ["-wal", "-journal"].map(|suffix| fs::metadata(beside(path, suffix)));
    if journals.iter().flatten().any(|journal| journal.len() > 0) {
        return None;
    }
    let metadata = fs::metadata(path).ok()?;
    let id = FileId { device: metadata.dev(), inode: metadata.ino() };
    Some(Settled { id, size_bytes: metadata.len(), mtime: (metadata.mtime(), metadata.mtime_nsec()) })
}

fn connect(path: &Path, source: Source) -> rusqlite::Result<Connection> {
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = match source {
        Source::Shared(_) => Connection::open_with_flags(path, read_only)?,
        Source::Immutable(_) => {
            Connection::open_with_flags(immutable_uri(path), read_only | OpenFlags::SQLITE_OPEN_URI)?
        }
    };
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// The URI by which SQLite opens a file as immutable (sqlite.org, "Uniform Resource Identifiers").
fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}
