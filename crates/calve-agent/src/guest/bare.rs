//! A guest without a system: programs run on the first root file system, below our own init.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use calve_wire::machine::ExitCause;

use super::first::First;
use super::limits::{self, Events, Programs};
use super::parameters::Parameters;
use super::{files, mounts, network, port, power};
use crate::agent::begun::Begun;
use crate::agent::transport::Transport;
use crate::agent::transport::device::Opened;
use crate::agent::{self, Config};
use crate::confine_api::Confine;
use crate::enclosure::Enclosure;
use crate::init::{self, packet};

/// Makes the place, and is its init until the agent has ended.
pub(super) fn run(parameters: Parameters, mut notes: Vec<String>) -> anyhow::Result<()> {
    let first = First::prepare(&parameters);
    mounts::for_programs()?;
    if let Some(store) = &parameters.store {
        mounts::store(store, "/nix/store")?;
        if let Some(first) = &first {
            first.read_ahead();
        }
    }
    network::name_host(&parameters.hostname)?;
    let interfaces = network::loopback().context("the loopback cannot be brought up")?;
    if parameters.network
        && let Err(error) = network::through_host(&interfaces)
    {
        notes.push(format!("the network cannot be reached: {error}"));
    }
    let name_servers: &[_] = if parameters.network { &[network::NAME_SERVER.into()] } else { &[] };
    files::write(&parameters.hostname, name_servers)?;
    let confine = limited(parameters.pids, &mut notes);
    let (port, begun) = match first {
        Some(first) => first.begin(&parameters, &confine, &notes).map(|(port, begun)| (Some(port), begun))?,
        None => (None, None),
    };
    let program = begun.as_ref().and_then(|begun| Some(begun.started.as_ref().ok()?.pid));
    drop(interfaces);
    inhabit(&confine, program, |init| agent(parameters, init, notes, port, begun))
}

/// What programs enter, which may be so many; where the kernel cannot do it, a note says so.
pub(super) fn limited(pids: Option<u32>, notes: &mut Vec<String>) -> Enter {
    let programs = limits::mount().and_then(|()| Ok(pids.map(Programs::create).transpose()?));
    Enter(programs.unwrap_or_else(|error| {
        notes.push(match pids {
            Some(_) => format!("processes are not limited: {error:#}"),
            None => format!("there are no cgroups: {error:#}"),
        });
        None
    }))
}

/// Forks the agent, and is its init until it has ended; the `first` program runs already.
pub(super) fn inhabit(
    confine: &Enter,
    first: Option<i32>,
    agent: impl FnOnce(OwnedFd) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (here, there) = packet::pair()?;
    // SAFETY: this process has one thread, so the child has all of its memory in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("the agent cannot be forked"),
        0 => {
            drop(there);
            let ended = agent(here);
            if let Err(error) = &ended {
                eprintln!("calve-agent: {error:#}");
            }
            // SAFETY: ends the child at once, without running what the parent has registered.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
        pid => {
            drop((here, agent));
            init::run(there, &init::Options { confine, spare: Some(pid), first })?;
            Ok(())
        }
    }
}

fn agent(
    parameters: Parameters,
    init: OwnedFd,
    notes: Vec<String>,
    opened: Option<Opened>,
    begun: Option<Begun>,
) -> anyhow::Result<()> {
    agent::run(Config {
        token: parameters.token.parse()?,
        remaining: parameters.remaining_now(),
        transport: Box::new(|| {
            let path = if opened.is_some() { port::USUAL_DEVICE.into() } else { port::find()? };
            Ok(Transport::Device { path, opened })
        }),
        init,
        enclosure: Box::new(BareGuest::new(notes, power::end_machine)),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun,
    })?;
    Ok(())
}

/// Programs enter their cgroup and give up nothing: the guest's kernel is the wall.
pub(super) struct Enter(Option<Programs>);

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
