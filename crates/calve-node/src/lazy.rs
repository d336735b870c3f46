//! Closures that are served lazily: mounted on this host before they are here, by a process of their own.
//!
//! ```text
//!  <runtime>/lazy/<roots>/store/        the mount: store paths under their base names
//!  <runtime>/lazy/<roots>/served.json   where each path of the closure lies; there while it is served
//!  <runtime>/lazy/<roots>/users/        a file for each machine that uses it: <driver>-<machine id>
//!  <runtime>/lazy/<roots>/lock          held by the process that serves
//! ```
//! The process is nobody's child and outlives servers. It ends when the last machine has gone: then it takes `served.json`
//! away first and looks at the users again, while a machine that comes writes its file first and looks at `served.json`
//! then, so that one of them sees the other. A directory whose lock is free is a leftover, and its mount is dead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calve_core::{DriverName, MachineId};
use calve_nix::{HashWriter, StorePath};
use calve_store::{Closure, ClosurePath};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use crate::run_dir::RunDirs;

/// How long a machine may take from announcing itself to having a living supervisor.
const CREATION_MAX: Duration = Duration::from_secs(120);
/// Digits of a directory's name: enough that no two closures have the same, short enough for paths.
const NAME_DIGITS: usize = 32;

/// All that is served lazily on this host by one user.
#[derive(Debug, Clone)]
pub struct LazyDirs {
    runtime: PathBuf,
}

/// One closure that is served lazily, or may be.
#[derive(Debug, Clone)]
pub struct LazyDir {
    path: PathBuf,
    runtime: PathBuf,
}

/// What `served.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Served {
    paths: Vec<ServedPath>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ServedPath {
    /// The store path's base name.
    base_name: String,
    /// Where it lies.
    host_path: PathBuf,
}

impl LazyDirs {
    /// Those under a runtime directory.
    pub fn new(runtime_dir: &Path) -> Self {
        Self { runtime: runtime_dir.to_owned() }
    }

    /// The directory for the closure of these roots; it need not exist.
    pub fn of(&self, roots: &[StorePath]) -> LazyDir {
        let mut names: Vec<_> = roots.iter().map(StorePath::base_name).collect();
        names.sort_unstable();
        names.dedup();
        let mut hash = HashWriter::default();
        for name in names {
            writeln!(hash, "{name}").expect("hashing does not fail");
        }
        let name = hash.finish().0.to_hex();
        LazyDir { path: self.root().join(&name[..NAME_DIGITS]), runtime: self.runtime.clone() }
    }

    /// Lets go of whatever the machine used. Absence is success.
    pub fn release(&self, driver: DriverName, id: MachineId) {
        for dir in self.list() {
            let _ = fs::remove_file(dir.user(driver, id));
        }
    }

    /// Removes what processes that were killed have left, their mounts too.
    pub fn reap(&self) {
        for dir in self.list() {
            if let Ok(Some(_lock)) = dir.lock() {
                dir.remove();
            }
        }
    }

    fn list(&self) -> Vec<LazyDir> {
        let entries = fs::read_dir(self.root()).into_iter().flatten().flatten();
        entries.map(|entry| LazyDir { path: entry.path(), runtime: self.runtime.clone() }).collect()
    }

    fn root(&self) -> PathBuf {
        self.runtime.join("lazy")
    }
}

impl LazyDir {
    /// Makes the directory, for its owner alone, where it does not exist.
    pub fn create(&self) -> io::Result<()> {
        for dir in [self.mount(), self.path.join("users")] {
            match fs::symlink_metadata(&dir) {
                // A mount whose process was killed: the next one comes over it.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
                    detach(&dir);
                }
                _ => {}
            }
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        Ok(())
    }

    /// Where the closure is mounted.
    pub fn mount(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The right to serve, until it is dropped; none where somebody has it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.path.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had it may have removed the directory with it.
        let same = |file: io::Result<fs::Metadata>| {
            use std::os::unix::fs::MetadataExt;
            file.map(|file| file.ino()).ok()
        };
        let current = same(fs::metadata(self.path.join("lock")));
        Ok((current.is_some() && current == same(file.metadata())).then_some(file))
    }

    /// Says where each path of the closure lies, from now on.
    pub fn announce(&self, closure: &Closure) -> io::Result<()> {
        let path = |path: &ClosurePath| ServedPath {
            base_name: path.path.base_name().to_owned(),
            host_path: path.host_path.clone(),
        };
        let served = Served { paths: closure.paths.iter().map(path).collect() };
        let new = self.path.join("served.json.new");
        fs::write(&new, serde_json::to_vec(&served).map_err(io::Error::other)?)?;
        fs::rename(new, self.path.join("served.json"))
    }

    /// Says so no more.
    pub fn retract(&self) {
        let _ = fs::remove_file(self.path.join("served.json"));
    }

    /// The closure, where it is served.
    pub fn closure(&self) -> Option<Closure> {
        let served: Served = serde_json::from_slice(&fs::read(self.path.join("served.json")).ok()?).ok()?;
        let alive = matches!(self.lock(), Ok(None));
        let path = |path: ServedPath| {
            let ServedPath { base_name, host_path } = path;
            Some(ClosurePath { path: StorePath::from_base_name(&base_name).ok()?, host_path })
        };
        let paths = served.paths.into_iter().map(path).collect::<Option<Vec<_>>>();
        paths.filter(|_| alive).map(Closure::new)
    }

    /// Holds the closure for a machine that is about to be made; gives it where it is served.
    pub fn hold(&self, driver: DriverName, id: MachineId) -> io::Result<Option<Closure>> {
        match fs::write(self.user(driver, id), b"") {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            written => written?,
        }
        let closure = self.closure();
        if closure.is_none() {
            let _ = fs::remove_file(self.user(driver, id));
        }
        Ok(closure)
    }

    /// Whether a machine uses it; those that are dead are forgotten.
    pub fn is_used(&self) -> bool {
        let entries = fs::read_dir(self.path.join("users")).into_iter().flatten().flatten();
        let mut used = false;
        for entry in entries {
            let name = entry.file_name();
            let user = name.to_str().and_then(|name| {
                let (driver, id) = name.split_once('-')?;
                Some((driver.parse::<DriverName>().ok()?, id.parse::<MachineId>().ok()?))
            });
            let Some((driver, id)) = user else { continue };
            let meta = RunDirs::new(&self.runtime, driver).meta(id);
            let lives = meta.is_some_and(|meta| meta.process.is_alive());
            let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|time| time.elapsed().ok());
            if lives || age.is_none_or(|age| age < CREATION_MAX) {
                used = true;
            } else {
                let _ = fs::remove_file(entry.path());
            }
        }
        used
    }

    /// When a machine last came or went; for telling whether any did since.
    pub fn changed(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join("users")).and_then(|users| users.modified()).ok()
    }

    /// Takes the mount out of sight and removes the directory; only for who has the lock.
    pub fn remove(&self) {
        self.retract();
        detach(&self.mount());
        // Never recursively: were the mount still there, that would walk all of it.
        let _ = fs::remove_dir(self.mount());
        let _ = fs::remove_dir_all(self.path.join("users"));
        for name in ["served.json.new", "lock"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir(&self.path);
    }

    fn user(&self, driver: DriverName, id: MachineId) -> PathBuf {
        self.path.join("users").join(format!("{driver}-{id}"))
    }
}

/// Takes a mount out of sight, whoever made it; its absence is success.
fn detach(at: &Path) {
    if unmount(at, UnmountFlags::DETACH).is_err() && !rustix::process::geteuid().is_root() {
        let mut command = std::process::Command::new("fusermount3");
        command.args(["-u", "-q", "-z", "--"]).arg(at).stdin(std::process::Stdio::null());
        let _ = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_core::Timestamp;

    fn roots() -> [StorePath; 1] {
        [StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a").unwrap()]
    }

    #[test]
    fn a_machine_holds_what_is_served_and_nothing_else() {
        let runtime = tempfile::tempdir().unwrap();
        let dirs = LazyDirs::new(runtime.path());
        let (dir, driver, id) = (dirs.of(&roots()), DriverName::Sandbox, MachineId::new(Timestamp(1), 1));
        assert!(dir.hold(driver, id).unwrap().is_none(), "there is no directory");
        dir.create().unwrap();
        let lock = dir.lock().unwrap().unwrap();
        assert!(dir.lock().unwrap().is_none());
        assert!(dir.hold(driver, id).unwrap().is_none() && !dir.is_used());
        let host_path = dir.mount().join(roots()[0].base_name());
        let closure = Closure::new(vec![ClosurePath { path: roots()[0].clone(), host_path }]);
        dir.announce(&closure).unwrap();
        assert_eq!(dir.hold(driver, id).unwrap(), Some(closure));
        assert!(dir.is_used());
        dirs.release(driver, id);
        dirs.release(driver, id);
        assert!(!dir.is_used());
        dir.hold(driver, id).unwrap();
        dir.retract();
        assert!(dir.closure().is_none() && dir.is_used(), "who ends sees the machine");
        dirs.reap();
        assert!(dir.mount().exists(), "it is served");
        drop(lock);
        dirs.reap();
        assert!(!dir.mount().exists() && dirs.list().is_empty());
    }

    #[test]
    fn what_nobody_serves_any_more_is_no_closure() {
        let runtime = tempfile::tempdir().unwrap();
        let dir = LazyDirs::new(runtime.path()).of(&roots());
        dir.create().unwrap();
        let lock = dir.lock().unwrap();
        dir.announce(&Closure::default()).unwrap();
        assert!(dir.closure().is_some());
        drop(lock);
        assert!(dir.closure().is_none());
    }
}
