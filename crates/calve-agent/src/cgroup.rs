//! Cgroups of a machine: `calve/<machine id>` in each hierarchy that has a controller we need, whichever version of
//! cgroups the host has. Choosing comes before making, so that what will be made can be written down first.

mod hierarchy;
mod v1;
mod v2;

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calve_wire::machine::Limits;

pub use hierarchy::Hierarchies;

/// Directory under which the cgroups of all machines lie.
const PARENT: &str = "calve";
/// Longest wait for the kernel to let go of a cgroup whose processes have all ended: it does so within milliseconds, but
/// only once it gets to run.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two tries to remove a cgroup: v1 has nothing to wait on.
const REMOVE_PAUSE: Duration = Duration::from_millis(1);
/// How often a cgroup is tried to be made while others remove the directory that all machines share.
const MAKE_TRIES: usize = 8;
/// Least CPU quota that the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1000;
/// Period over which the CPU quota counts: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// What of a host's controllers a machine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Memory and swap together, and the count of kills for want of it.
    Memory,
    /// Share of the processors' time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// Memory is wanted without a limit as well: it tells a kill for want of memory from any other.
    fn wanted(self, limits: &Limits) -> bool {
        match self {
            Self::Memory => true,
            Self::Cpu => limits.cpus_milli.is_some(),
            Self::Pids => limits.pids.is_some(),
        }
    }

    fn limited(self, limits: &Limits) -> bool {
        match self {
            Self::Memory => limits.memory_bytes.is_some(),
            Self::Cpu => limits.cpus_milli.is_some(),
            Self::Pids => limits.pids.is_some(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// One cgroup: its directory and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    version: Version,
    dir: PathBuf,
    controllers: Vec<Controller>,
}

/// Cgroups that shall be made.
#[derive(Debug)]
pub struct Plan {
    groups: Vec<Group>,
    limits: Limits,
    notes: Vec<String>,
    unenforced: Vec<Controller>,
}

impl Plan {
    /// Chooses where the cgroups of machine `id` shall lie; makes at most the directory that all machines share.
    pub fn new(host: &Hierarchies, id: &str, limits: &Limits) -> Self {
        let wanted = Controller::ALL.into_iter().filter(|c| c.wanted(limits));
        let mut plan =
            Self { groups: Vec::new(), limits: *limits, notes: Vec::new(), unenforced: Vec::new() };
        let (in_v2, elsewhere): (Vec<_>, Vec<_>) = wanted.partition(|c| host.v2_has(*c));
        if !in_v2.is_empty() {
            plan.choose_v2(host, id, &in_v2);
        }
        for controller in elsewhere {
            match v1::parent(host, controller) {
                Ok(parent) => plan.use_v1(parent.join(id), controller),
                Err(why) => plan.give_up(controller, &why),
            }
        }
        plan
    }

    fn choose_v2(&mut self, host: &Hierarchies, id: &str, wanted: &[Controller]) {
        let (parent, has) = match v2::parent(host, wanted) {
            Ok(found) => found,
            Err(why) => return wanted.iter().for_each(|c| self.give_up(*c, &why)),
        };
        let (usable, lacking): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|c| has.contains(c));
        for controller in lacking {
            self.give_up(
                controller,
                &format!("{} is not delegated to {}", controller.as_str(), parent.display()),
            );
        }
        self.groups.push(Group { version: Version::V2, dir: parent.join(id), controllers: usable });
    }

    /// Controllers that are mounted together share one directory.
    fn use_v1(&mut self, dir: PathBuf, controller: Controller) {
        match self.groups.iter_mut().find(|group| group.dir == dir) {
            Some(group) => group.controllers.push(controller),
            None => self.groups.push(Group { version: Version::V1, dir, controllers: vec![controller] }),
        }
    }

    fn give_up(&mut self, controller: Controller, why: &str) {
        self.unenforced.push(controller);
        if controller.limited(&self.limits) {
            self.notes.push(format!("the {} limit is not enforced: {why}", controller.as_str()));
        }
    }

    /// Whether a process can enter all of them at any time. One that moves into a v2 cgroup waits for every fork in the system
    /// (`cgroup_procs_write_start` in the kernel's kernel/cgroup/cgroup.c), so it is cloned into it instead.
    pub fn is_entered_cheaply(&self) -> bool {
        self.groups.iter().all(|group| group.version == Version::V1)
    }

    /// The directories that [`Plan::make`] will make.
    pub fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.groups.iter().map(|group| &group.dir)
    }

    /// Makes the cgroups and sets their limits. What cannot be had becomes a note, not a failure.
    pub fn make(mut self) -> Cgroup {
        let mut groups = Vec::new();
        for group in std::mem::take(&mut self.groups) {
            if let Err(error) = group.make_dir() {
                let why = format!("{} cannot be made ({error})", group.dir.display());
                group.controllers.iter().for_each(|c| self.give_up(*c, &why));
                continue;
            }
            for controller in group.controllers.iter().filter(|c| c.limited(&self.limits)) {
                let set = match group.version {
                    Version::V1 => v1::set_limit(&group.dir, *controller, &self.limits),
                    Version::V2 => v2::set_limit(&group.dir, *controller, &self.limits),
                };
                if let Err(error) = set {
                    self.unenforced.push(*controller);
                    self.notes.push(format!(
                        "the {} limit is not enforced: {} refuses it ({error})",
                        controller.as_str(),
                        group.dir.display()
                    ));
                }
            }
            groups.push(group);
        }
        let memory_bytes =
            self.limits.memory_bytes.filter(|_| !self.unenforced.contains(&Controller::Memory));
        Cgroup { groups, notes: self.notes, unenforced: self.unenforced, memory_bytes }
    }
}

impl Group {
    /// Makes the directory. The one that all machines share goes with the last of them, which may be just now.
    fn make_dir(&self) -> io::Result<()> {
        let parent = self.dir.parent().expect("a cgroup of ours lies below the shared directory");
        for _ in 0..MAKE_TRIES {
            match fs::create_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                result => return result,
            }
            fs::create_dir_all(parent)?;
            if self.version == Version::V2 {
                for controller in &self.controllers {
                    // Where it fails, setting the limit will say so.
                    v2::hand_down(parent, *controller);
                }
            }
        }
        fs::create_dir(&self.dir)
    }
}

/// The cgroups of one machine; they go with the value.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    notes: Vec<String>,
    unenforced: Vec<Controller>,
    memory_bytes: Option<u64>,
}

impl Cgroup {
    /// Which limits are not enforced and why, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The directories, as text for people.
    pub fn dirs(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.dir.display().to_string()).collect()
    }

    /// Whether the machine's processes are counted by a cgroup.
    pub fn enforces(&self, controller: Controller) -> bool {
        !self.unenforced.contains(&controller)
    }

    /// The v2 directory to clone into (`CLONE_INTO_CGROUP`, clone(2)): moving a process later waits for all of the
    /// kernel's readers.
    pub fn clone_into(&self) -> Option<io::Result<OwnedFd>> {
        let group = self.groups.iter().find(|group| group.version == Version::V2)?;
        Some(fs::File::open(&group.dir).map(Into::into))
    }

    /// Opens the ways into the cgroups, for a process that may not open them itself.
    pub fn entrances(&self) -> io::Result<Vec<Entrance>> {
        let open = |group: &Group| {
            let file = match group.version {
                Version::V1 => "tasks",
                Version::V2 => "cgroup.procs",
            };
            let file = fs::File::options().write(true).open(group.dir.join(file))?;
            Ok(Entrance { file, version: group.version })
        };
        self.groups.iter().map(open).collect()
    }

    /// How often the kernel has killed something of the machine for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.count(Controller::Memory, v1::oom_kills, v2::oom_kills)
    }

    /// The memory that files and shared memory of the machine hold, and its limit; none where that is not enforced.
    pub fn shared_memory(&self) -> Option<(u64, u64)> {
        let held = |dir: &Path| flat_keyed(&dir.join("memory.stat"), "shmem");
        self.memory_bytes.map(|limit| (self.count(Controller::Memory, held, held), limit))
    }

    /// How often the machine could not start a process for the limit on them.
    pub fn pids_limit_hits(&self) -> u64 {
        let hits = |dir: &Path| flat_keyed(&dir.join("pids.events"), "max");
        self.count(Controller::Pids, hits, hits)
    }

    fn count(&self, of: Controller, v1: impl Fn(&Path) -> u64, v2: impl Fn(&Path) -> u64) -> u64 {
        let group = self.groups.iter().find(|group| group.controllers.contains(&of));
        group.map_or(0, |group| match group.version {
            Version::V1 => v1(&group.dir),
            Version::V2 => v2(&group.dir),
        })
    }

    /// Removes the cgroups once every process in them has ended; waits for that for a short while. Absence is success.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_DEADLINE;
        for group in &self.groups {
            remove_dir(&group.dir, deadline)?;
            // The shared directory goes with its last machine; until then it is not empty, which is as well.
            let _ = group.dir.parent().map(fs::remove_dir);
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever destroys the machine tries again.
        let _ = self.remove();
    }
}

/// The way into one cgroup.
#[derive(Debug)]
pub struct Entrance {
    file: fs::File,
    version: Version,
}

impl Entrance {
    /// The way into a v1 cgroup that was opened elsewhere.
    pub fn v1(file: OwnedFd) -> Self {
        Self { file: file.into(), version: Version::V1 }
    }

    /// The open file, for another process.
    pub fn into_file(self) -> OwnedFd {
        self.file.into()
    }

    /// Moves the calling process, which must have one thread. In v1 a single thread that moves itself is spared the wait for
    /// every fork in the system, which takes longer than all the rest of making a machine (`cgroup_procs_write_start` in the
    /// kernel's kernel/cgroup/cgroup.c).
    pub fn enter(&self) -> io::Result<()> {
        (&self.file).write_all(b"0")
    }

    /// Whether a process that was cloned into the v2 cgroup has come this way already.
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }
}

fn remove_dir(dir: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            result => return result,
        }
    }
}

/// The number behind `key` in a file of `key number` lines; zero where either is absent.
fn flat_keyed(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The limit that is set: what the user asked for and the machine's own first process.
fn pids_max(limits: &Limits) -> String {
    limits.pids.unwrap_or(u32::MAX).saturating_add(1).to_string()
}

/// Time of the processors in each period.
fn cpu_quota_us(limits: &Limits) -> u64 {
    let milli = u64::from(limits.cpus_milli.unwrap_or(u32::MAX));
    (CPU_PERIOD_US * milli / 1000).max(CPU_QUOTA_MIN_US)
}
