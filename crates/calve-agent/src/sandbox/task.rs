//! What a sandbox in standby is told of its machine, and how: a document in memory and the descriptors that belong to it.
//!
//! ```text
//!  document, output, errors, ways into the cgroups ▶   then, where init may not open them: views of the store paths, some at a time ▶
//! ```

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use calve_wire::agent::SandboxSpec;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::talk::{DESCRIPTORS_MAX, Talk};
use super::tree::Kind;

/// The machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task<'a> {
    /// As the driver wrote it.
    pub spec: Cow<'a, SandboxSpec>,
    /// Where its supervisor keeps what belongs to it.
    pub run_dir: PathBuf,
    /// Most processes, where no cgroup counts them.
    pub processes_max: Option<u32>,
    /// What comes as descriptors; none where init opens it by itself.
    pub views: Option<Views>,
}

/// Store paths, in order, and the tools of a machine without any.
#[derive(Debug, Serialize, Deserialize)]
pub struct Views {
    /// What lies at each store path.
    pub kinds: Vec<Kind>,
    /// Whether a BusyBox comes behind them.
    pub busybox: bool,
}

impl Task<'_> {
    /// Hands it to init, with the way into its cgroups and with the views.
    pub fn assign(&self, init: &Talk, entrances: Vec<OwnedFd>, views: Vec<OwnedFd>) -> io::Result<()> {
        let mut document = File::from(rustix::fs::memfd_create("task", MemfdFlags::CLOEXEC)?);
        document.write_all(&serde_json::to_vec(self)?)?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let errors = io::stderr().as_fd().try_clone_to_owned()?;
        let first: Vec<_> = [document.into(), output, errors].into_iter().chain(entrances).collect();
        init.hand_over(&first)?;
        for views in views.chunks(DESCRIPTORS_MAX) {
            init.hand_over(views)?;
        }
        Ok(())
    }
}

/// A machine as init gets it.
pub struct Assigned {
    /// The machine.
    pub task: Task<'static>,
    /// The agent's standard output and error.
    pub standard: [OwnedFd; 2],
    /// Ways into its cgroups.
    pub entrances: Vec<OwnedFd>,
    /// The views.
    pub views: Vec<OwnedFd>,
}

impl Assigned {
    /// Waits for it; none where the agent is gone.
    pub fn hear(agent: &Talk) -> Option<Self> {
        let mut first = agent.take_over().ok()?.into_iter();
        let (document, standard) = first.next().zip(first.next().zip(first.next()))?;
        let mut document = File::from(document);
        document.rewind().ok()?;
        let mut json = Vec::new();
        document.read_to_end(&mut json).ok()?;
        let task: Task = serde_json::from_slice(&json).ok()?;
        let wanted = task.views.as_ref().map_or(0, |views| {
            views.kinds.iter().filter(|kind| kind.is_mounted()).count() + usize::from(views.busybox)
        });
        let mut views = Vec::with_capacity(wanted);
        while views.len() < wanted {
            let more = agent.take_over().ok()?;
            if more.is_empty() {
                return None;
            }
            views.extend(more);
        }
        Some(Self { task, standard: standard.into(), entrances: first.collect(), views })
    }
}
