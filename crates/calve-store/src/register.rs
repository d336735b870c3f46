//! The private store's register of valid paths: one small JSON file a path, written once the path's files are in place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calve_nix::StorePath;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use serde::{Deserialize, Serialize};

use crate::{PathInfo, StoreError};

/// The only version of an entry that there is so far.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";
/// How old the note of a path's last use may be before it is written again: a closure of hundreds of paths is looked at many
/// times while its machine comes to be, and each note is a write to the disk.
pub const USE_NOTED_EVERY: Duration = Duration::from_secs(600);

/// The directory of entries.
#[derive(Debug)]
pub struct Register {
    dir: PathBuf,
}

/// An entry as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    path: String,
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deriver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<String>,
}

impl Register {
    /// The register in `dir`, which exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn file(&self, path: &StorePath) -> PathBuf {
        self.dir.join(format!("{}{SUFFIX}", path.base_name()))
    }

    /// Whether the path is valid here.
    pub fn contains(&self, path: &StorePath) -> bool {
        self.file(path).exists()
    }

    /// Whether the path is valid here; if so, that counts as a use of it, which the entry's time of modification tells.
    pub fn use_path(&self, path: &StorePath) -> bool {
        let file = self.file(path);
        let Ok(metadata) = fs::symlink_metadata(&file) else { return false };
        let is_recent = |time: SystemTime| time.elapsed().is_ok_and(|age| age < USE_NOTED_EVERY);
        if metadata.modified().is_ok_and(is_recent) {
            return true;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(CWD, &file, &times, AtFlags::SYMLINK_NOFOLLOW) {
            // Pruned in this moment.
            Err(rustix::io::Errno::NOENT) => false,
            // Who may not write here does not prune here either.
            _ => true,
        }
    }

    /// When the path was last used; none where it is not valid here.
    pub fn used(&self, path: &StorePath) -> Option<SystemTime> {
        fs::symlink_metadata(self.file(path)).and_then(|metadata| metadata.modified()).ok()
    }

    /// Takes the path's entry away, to the file `aside` on the same file system, unless it was used since `since`; gives
    /// whether it is gone. Whoever asks for the path beside this has either noted its use in time or finds it gone.
    pub fn take_unused(&self, path: &StorePath, since: SystemTime, aside: &Path) -> Result<bool, StoreError> {
        let file = self.file(path);
        if self.used(path).is_none_or(|used| used >= since) {
            return Ok(false);
        }
        fs::rename(&file, aside).map_err(StoreError::io("remove", &file))?;
        let used = fs::symlink_metadata(aside).and_then(|metadata| metadata.modified());
        if used.is_ok_and(|used| used < since) {
            return Ok(true);
        }
        fs::rename(aside, &file).map_err(StoreError::io("write", &file))?;
        Ok(false)
    }

    /// The path's entry; none where it is not valid here.
    pub fn get(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        let file = self.file(path);
        let bytes = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(StoreError::io("read", &file))?,
        };
        match parse(&bytes) {
            Ok(entry) if entry.path == *path => Ok(Some(entry)),
            Ok(entry) => {
                Err(StoreError::Damaged { path: file, message: format!("it speaks of {}", entry.path) })
            }
            Err(message) => Err(StoreError::Damaged { path: file, message }),
        }
    }

    /// Every valid path, sorted.
    pub fn list(&self) -> Result<Vec<StorePath>, StoreError> {
        let mut paths = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(StoreError::io("read", &self.dir))? {
            let name = file.map_err(StoreError::io("read", &self.dir))?.file_name();
            let base = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            paths.extend(base.and_then(|base| StorePath::from_base_name(base).ok()));
        }
        paths.sort_unstable();
        Ok(paths)
    }

    /// Writes the path's entry, at once or not at all; `scratch` is a directory on the same file system.
    pub fn insert(&self, entry: &PathInfo, scratch: &Path) -> Result<(), StoreError> {
        let new = scratch.join("entry.json");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&encode(entry))?;
            file.sync_all()
        });
        written.map_err(StoreError::io("write", &new))?;
        let file = self.file(&entry.path);
        fs::rename(&new, &file).map_err(StoreError::io("write", &file))?;
        sync_dir(&self.dir)
    }

    /// Writes the entries of many paths, in their order; each appears at once or not at all. With `flush`, the whole
    /// file system of `scratch` is flushed once before the first appears, which also covers the paths' files.
    pub fn insert_all(&self, entries: &[&PathInfo], scratch: &Path, flush: bool) -> Result<(), StoreError> {
        let new = |n: usize| scratch.join(format!("entry-{n}.json"));
        for (n, entry) in entries.iter().enumerate() {
            fs::write(new(n), encode(entry)).map_err(StoreError::io("write", &new(n)))?;
        }
        if flush {
            let synced = File::open(scratch).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
            synced.map_err(StoreError::io("write", scratch))?;
        }
        for (n, entry) in entries.iter().enumerate() {
            let file = self.file(&entry.path);
            fs::rename(new(n), &file).map_err(StoreError::io("write", &file))?;
        }
        if flush { sync_dir(&self.dir) } else { Ok(()) }
    }

    /// Removes the path's entry; absence is success.
    pub fn remove(&self, path: &StorePath) -> Result<(), StoreError> {
        let file = self.file(path);
        match fs::remove_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(StoreError::io("remove", &file)),
        }
    }
}

/// Makes the names in a directory survive a power failure.
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("write", dir))
}

fn encode(entry: &PathInfo) -> Vec<u8> {
    let stored = Stored {
        version: VERSION,
        path: entry.path.base_name().to_owned(),
        nar_hash: entry.nar_hash.to_string(),
        nar_size: entry.nar_size,
        references: entry.references.iter().map(|path| path.base_name().to_owned()).collect(),
        deriver: entry.deriver.as_ref().map(|path| path.base_name().to_owned()),
        ca: entry.ca.clone(),
        signatures: entry.signatures.clone(),
    };
    serde_json::to_vec(&stored).expect("texts and numbers")
}

fn parse(bytes: &[u8]) -> Result<PathInfo, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if stored.version != VERSION {
        return Err(format!("version {} is newer than this program", stored.version));
    }
    let base = |base: &String| StorePath::from_base_name(base).map_err(|error| error.to_string());
    Ok(PathInfo {
        path: base(&stored.path)?,
        nar_hash: stored.nar_hash.parse().map_err(|error: calve_nix::HashError| error.to_string())?,
        nar_size: stored.nar_size,
        references: stored.references.iter().map(base).collect::<Result<_, _>>()?,
        deriver: stored.deriver.as_ref().map(base).transpose()?,
        ca: stored.ca,
        signatures: stored.signatures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: &str = r#"{"version":1,"path":"0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello","nar_hash":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","nar_size":120,"references":["0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-glibc"]}"#;

    #[test]
    fn entries_round_trip_and_old_ones_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::new(dir.path().to_owned());
        let entry = parse(KEPT.as_bytes()).unwrap();
        assert_eq!(register.get(&entry.path).unwrap(), None);
        register.insert(&entry, dir.path()).unwrap();
        assert_eq!(fs::read_to_string(register.file(&entry.path)).unwrap(), KEPT);
        assert_eq!(register.get(&entry.path).unwrap(), Some(entry.clone()));
        assert_eq!(register.list().unwrap(), std::slice::from_ref(&entry.path));
        register.remove(&entry.path).unwrap();
        register.remove(&entry.path).unwrap();
        assert!(!register.contains(&entry.path));
    }

    #[test]
    fn all_that_is_known_of_a_path_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::new(dir.path().to_owned());
        let mut entry = parse(KEPT.as_bytes()).unwrap();
        entry.deriver =
            Some(StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello.drv").unwrap());
        entry.ca = Some("fixed:r:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic".to_owned());
        entry.signatures = vec!["a:b".to_owned(), "c:d".to_owned()];
        let mut other = entry.clone();
        other.path = entry.references[0].clone();
        register.insert_all(&[&other, &entry], dir.path(), true).unwrap();
        assert_eq!(register.get(&entry.path).unwrap(), Some(entry));
        assert_eq!(register.get(&other.path).unwrap(), Some(other));
    }

    #[test]
    fn damaged_and_newer_entries_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::new(dir.path().to_owned());
        let path = parse(KEPT.as_bytes()).unwrap().path;
        for bad in
            ["", "{}", &KEPT.replace("\"version\":1", "\"version\":2"), &KEPT.replace("hello", "other")]
        {
            fs::write(register.file(&path), bad).unwrap();
            assert!(matches!(register.get(&path), Err(StoreError::Damaged { .. })), "{bad}");
        }
    }
}
