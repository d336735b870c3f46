//! A sandbox that is made before its machine is known: most of the time that a sandbox takes goes into what is the same for
//! all of them. It serves one machine, and nothing of one that came to nothing is used again.
//!
//! ```text
//!  agent                                     init (PID 1 of the sandbox)
//!    clone, write the id maps ────────────▶    namespaces, loopback, the tree without what is the machine's own
//!    (wait for the driver's word)
//!    make cgroups, open the store paths ──▶    enter the cgroups, host name, /etc, store paths
//!    hear the report ◀───────────────────────  from here on as any sandbox
//! ```
//! Until then it has nothing on the host: no cgroup, no directory, no mount that others see. It dies with its agent.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs::File;
use std::path::Path;

use calve_wire::agent::SandboxSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, capabilities};

use super::ids::Map;
use super::talk::Talk;
use super::task::{Task, Views};
use super::title::Title;
use super::tree::Sources;
use super::{
    First, Sandbox, SandboxError, check, clone, confinement, etc, failed, init, mounts, own_network,
};
use super::{let_go_on, make_cgroups, talk, unclonable, uncounted_processes, unopened};
use crate::cgroup;
use crate::confine::Confinement;

/// A sandbox without a machine. When it is dropped, nothing of it is left.
#[derive(Debug)]
pub struct Standby {
    init: First,
    agent: Talk,
    map: Map,
    /// The host's mounts, of which init has a copy: what is mounted later is not in there, and what is unmounted stays.
    /// None where init has left them.
    mounts: Option<File>,
}

impl Standby {
    /// Makes it, with an init as [`super::launch`] takes it, whose title is set with the agent's. None where this host lacks
    /// what only a sandbox in standby needs.
    pub fn prepare(
        title: Option<Title>,
        init: impl FnOnce(Confinement) -> Infallible,
    ) -> Result<Option<Self>, SandboxError> {
        // Nothing depends on which users of the host they are (see there).
        let map = Map::choose(&std::process::id().to_string());
        let opens_views =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if !mounts::can_restrict() || (map.changes_user() && !opens_views) {
            return Ok(None);
        }
        let unread = |error| failed("the host's mounts cannot be read", &error);
        let mounts = File::open("/proc/self/mountinfo").map_err(unread)?;
        let confinement = confinement()?;
        let (ours, theirs) = talk()?;
        let (cloned, map) = clone::clone(map, None).map_err(unclonable)?;
        let first = match cloned {
            clone::Cloned::Child { .. } => {
                drop(ours);
                init::stand_by(map, &theirs, title, confinement, init)
            }
            clone::Cloned::Parent { pid, pidfd } => First { pid, pidfd },
        };
        drop(theirs);
        let_go_on(&ours, map, first.pid).map_err(|e| failed("the user id map cannot be written", &e))?;
        Ok(Some(Self { init: first, agent: ours, map, mounts: (!map.changes_user()).then_some(mounts) }))
    }

    /// Becomes ready when it is no longer [`Standby::is_fit`]: with the host's mounts, with init's end.
    pub fn watch(&self) -> impl Iterator<Item = PollFd<'_>> {
        let mounts = self.mounts.iter().map(|mounts| PollFd::new(mounts, PollFlags::PRI));
        mounts.chain([PollFd::new(&self.init.pidfd, PollFlags::IN)])
    }

    /// Whether its init is alive and sees the host as it is.
    pub fn is_fit(&self) -> bool {
        let mut watched: Vec<_> = self.watch().collect();
        poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }

    /// Makes it the sandbox of a machine, as [`super::launch`] does; gives it back with nothing done where the machine needs
    /// another one.
    pub fn assign(self, spec: &SandboxSpec, run_dir: &Path) -> Result<Result<Sandbox, SandboxError>, Self> {
        if !own_network(spec.network) || !self.is_fit() {
            return Err(self);
        }
        let plan = cgroup::Plan::new(&cgroup::Hierarchies::of_host(), &spec.machine_id, &spec.limits);
        if !plan.is_entered_cheaply() {
            return Err(self);
        }
        Ok(check(spec).and_then(|()| self.become_machine(spec, run_dir, plan)))
    }

    fn become_machine(
        self,
        spec: &SandboxSpec,
        run_dir: &Path,
        plan: cgroup::Plan,
    ) -> Result<Sandbox, SandboxError> {
        // Before there is anything on the host that it could leave behind.
        super::traces::write_init(run_dir, self.init.pid).map_err(super::unwritable)?;
        let cgroup = make_cgroups(plan, run_dir)?;
        let (views, opened) = if self.map.changes_user() {
            super::raise_open_files();
            let (kinds, busybox, opened) = Sources::open(spec, &etc::Files::new(spec), true)?.into_parts();
            (Some(Views { kinds, busybox }), opened)
        } else {
            (None, Vec::new())
        };
        let task = Task {
            spec: Cow::Borrowed(spec),
            run_dir: run_dir.to_owned(),
            processes_max: uncounted_processes(spec, &cgroup),
            views,
        };
        let entrances = cgroup.entrances().map_err(unopened)?;
        let entrances = entrances.into_iter().map(cgroup::Entrance::into_file).collect();
        // Where init died just now, its report, or the lack of one, says so.
        let _ = task.assign(&self.agent, entrances, opened);
        let notes = cgroup.notes().iter().cloned().chain(self.map.note()).collect();
        Ok(Sandbox { init: self.init, agent: self.agent, mapped: Ok(()), cgroup, notes })
    }
}
