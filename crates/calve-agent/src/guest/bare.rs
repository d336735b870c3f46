//! A guest without a system: programs run on the first root file system, below our own init.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use calve_wire::machine::ExitCause;

use super::limits::{self, Events, Programs};
use super::parameters::Parameters;
use super::{files, mounts, network, port, power};
use crate::agent::transport::Transport;
use crate::agent::{self, Config};
use crate::confine_api::Confine;
use crate::enclosure::Enclosure;
use crate::init::{self, packet};

/// Makes the place, and is its init until the agent has ended.
pub(super) fn run(parameters: Parameters, mut notes: Vec<String>) -> anyhow::Result<()> {
    mounts::for_programs()?;
    if let Some(store) = &parameters.store {
        mounts::store(store, "/nix/store")?;
    }
    network::name_host(&parameters.hostname)?;
    network::loopback().context("the loopback cannot be brought up")?;
    if parameters.network
        && let Err(error) = network::through_host()
    {
        notes.push(format!("the network cannot be reached: {error}"));
    }
    let name_servers: &[_] = if parameters.network { &[network::NAME_SERVER.into()] } else { &[] };
    files::write(&parameters.hostname, name_servers)?;
    inhabit(parameters.pids, notes, |init, notes| agent(&parameters, init, notes))
}

/// Forks the agent, whose program may have so many processes, and is its init until it has ended.
pub(super) fn inhabit(
    pids: Option<u32>,
    mut notes: Vec<String>,
    agent: impl FnOnce(OwnedFd, Vec<String>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let programs = limits::mount().and_then(|()| Ok(pids.map(Programs::create).transpose()?));
    let programs = programs.unwrap_or_else(|error| {
        notes.push(match pids {
            Some(_) => format!("processes are not limited: {error:#}"),
            None => format!("there are no cgroups: {error:#}"),
        });
        None
    });
    let (here, there) = packet::pair()?;
    // SAFETY: this process has one thread, so the child has all of its memory in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("the agent cannot be forked"),
        0 => {
            drop(there);
            let ended = agent(here, notes);
            if let Err(error) = &ended {
                eprintln!("calve-agent: {error:#}");
            }
            // SAFETY: ends the child at once, without running what the parent has registered.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
        pid => {
            drop(here);
            let confine = Enter(programs);
            init::run(there, &init::Options { confine: &confine, spare: Some(pid) })?;
            Ok(())
        }
    }
}

fn agent(parameters: &Parameters, init: OwnedFd, notes: Vec<String>) -> anyhow::Result<()> {
    agent::run(Config {
        token: parameters.token.parse()?,
        remaining: parameters.remaining_now(),
        transport: Box::new(|| Ok(Transport::Device(port::find()?))),
        init,
        enclosure: Box::new(BareGuest::new(notes, power::end_machine)),
        announce: Box::new(|| Ok(())),
        run_dir: None,
    })?;
    Ok(())
}

/// Programs enter their cgroup and give up nothing: the guest's kernel is the wall.
struct Enter(Option<Programs>);

impl Confine for Enter {
    fn apply(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), Programs::enter)
    }
}

/// A guest in which there is nothing but the agent and its programs.
pub(super) struct BareGuest {
    notes: Vec<String>,
    /// What was told already: nothing has happened before the first program.
    before: Cell<Events>,
    end: fn(),
}

impl BareGuest {
    /// One that ends so.
    pub fn new(notes: Vec<String>, end: fn()) -> Self {
        Self { notes, before: Cell::default(), end }
    }
}

impl Enclosure for BareGuest {
    fn exit_cause(&self) -> ExitCause {
        let now = Events::now();
        let before = self.before.replace(now);
        if now.oom_kills > before.oom_kills {
            ExitCause::OutOfMemory
        } else if now.pids_refused > before.pids_refused {
            ExitCause::Limit
        } else {
            ExitCause::Normal
        }
    }

    /// Init kills everything, and with the machine ends what is left.
    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn shut_down(&self) -> bool {
        false
    }

    fn on_end(&self) {
        (self.end)();
    }
}
