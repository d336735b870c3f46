//! The directory of lent machines: who uses what of it, and what nobody uses any more.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use calve_agent::seed;
use calve_wire::agent::{SandboxFailure, SandboxFailureKind};
use calve_wire::lend::{LendOrder, LentMachine};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{end, failed};

/// Begins the names of agents there.
const AGENT_PREFIX: &str = "agent-";

/// The directory.
#[derive(Debug)]
pub struct Base(PathBuf);

/// Held while the directory's parts are counted.
pub struct Counting(#[expect(dead_code, reason = "closed with it, the lock goes")] File);

/// A machine's directory, there or not.
#[derive(Debug, Clone)]
pub struct Machine {
    pub id: String,
    pub dir: PathBuf,
}

impl Base {
    /// One at this place.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        Ok(Self(std::path::absolute(dir)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where this store path lies.
    pub fn store_path(&self, base_name: &str) -> PathBuf {
        self.0.join("store").join(base_name)
    }

    /// The machine with this id.
    pub fn machine(&self, id: &str) -> Result<Machine, SandboxFailure> {
        if !is_plain(id) {
            return Err(SandboxFailure {
                kind: SandboxFailureKind::Unusable,
                message: format!("{id:?} is no name of a machine"),
                hint: None,
            });
        }
        Ok(Machine { id: id.to_owned(), dir: self.0.join("m").join(id) })
    }

    /// Makes the directory where it is not there, and locks it.
    pub fn count(&self) -> Result<Counting, SandboxFailure> {
        let lock = || -> io::Result<File> {
            loop {
                private(&self.0)?;
                private(&self.0.join("m"))?;
                private(&self.0.join("store"))?;
                let path = self.0.join("lock");
                let file = File::options().create(true).truncate(false).write(true).open(&path)?;
                rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
                // Whoever had it before may have removed all of it.
                let there = fs::metadata(&path).ok();
                if there.is_some_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino())) {
                    return Ok(file);
                }
            }
        };
        lock().map(Counting).map_err(failed(format!("{} cannot be used", self.0.display())))
    }

    /// Puts this program back where it was called, if it went with the last machine while this process began: who wants to
    /// reach a machine calls it there. For whoever holds a machine, so that it stays.
    pub fn keep_agent(&self) -> Result<(), SandboxFailure> {
        let called = env::args_os().next().map(PathBuf::from);
        let Some(agent) = called.filter(|agent| agent.parent() == Some(&self.0) && !agent.exists()) else {
            return Ok(());
        };
        // Whole or not at all; a half one goes with the others of such names.
        let new = self.0.join(format!("{AGENT_PREFIX}new-{}", std::process::id()));
        fs::copy("/proc/self/exe", &new)
            .and_then(|_| fs::rename(&new, &agent))
            .map_err(failed(format!("{} cannot be kept", agent.display())))
    }

    /// Every machine that has a directory.
    fn all(&self) -> Vec<Machine> {
        let entries = fs::read_dir(self.0.join("m")).into_iter().flatten().flatten();
        entries.filter_map(|entry| self.machine(entry.file_name().to_str()?).ok()).collect()
    }

    /// Ends the machines that have no keeper any more, and removes what no machine uses: all of it with the last machine.
    pub fn vacate(&self, counting: Counting) {
        self.sweep(&counting);
        if self.all().is_empty() {
            for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let ours = ["m", "store", "lock"].iter().any(|ours| name == *ours);
                if ours || name.as_encoded_bytes().starts_with(AGENT_PREFIX.as_bytes()) {
                    // What cannot be removed is found by the next one.
                    let _ = seed::remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Ends the machines that have no keeper any more, and removes store paths that no machine uses.
    pub fn sweep(&self, _: &Counting) {
        let mut used = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for machine in self.all() {
            match machine.take() {
                Ok(Some(_lock)) => {
                    // What cannot be removed is found by the next one.
                    let _ = end::clear(&machine);
                }
                Ok(None) | Err(_) => {
                    let order = machine.order();
                    used.extend(
                        order.into_iter().flat_map(|order| order.spec.store_paths).map(|path| path.base_name),
                    );
                    ids.insert(machine.id);
                }
            }
        }
        for entry in fs::read_dir(self.0.join("store")).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let coming = name.strip_prefix('.').and_then(|rest| rest.split_once('.'));
            if !used.contains(&name) && !coming.is_some_and(|(id, _)| ids.contains(id)) {
                let _ = seed::remove(&entry.path());
            }
        }
    }

    /// The machines that are there.
    pub fn machines(&self) -> Result<Vec<LentMachine>, SandboxFailure> {
        let counting = self.count()?;
        self.sweep(&counting);
        let all = self.all();
        self.vacate(counting);
        let seen = |machine: Machine| {
            let LendOrder { attempt, holder, spec, .. } = machine.order()?;
            let until = spec.remaining.until_deadline_ms;
            let until_unix_ms = until.map(|until| spec.written_unix_ms.saturating_add(until));
            Some(LentMachine { id: machine.id, name: spec.hostname, attempt, holder, until_unix_ms })
        };
        Ok(all.into_iter().filter_map(seen).collect())
    }
}

impl Machine {
    /// The order by which it was made; none where it was not written yet.
    pub fn order(&self) -> Option<LendOrder> {
        serde_json::from_slice(&fs::read(self.dir.join("lend.json")).ok()?).ok()
    }

    /// Makes the directory and takes its lock; fails where there is one.
    pub fn make(&self) -> io::Result<File> {
        fs::DirBuilder::new().mode(0o700).create(&self.dir)?;
        let lock = File::create(self.dir.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    /// Takes the lock of a machine that has no keeper; none where it has one. Absence is an error.
    pub fn take(&self) -> io::Result<Option<File>> {
        // Where the lock was not made yet, whoever was about to make it is dead: it is made under the base's lock.
        let lock = File::options().create(true).truncate(false).write(true).open(self.dir.join("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether it can be a directory's entry and hides nothing.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
