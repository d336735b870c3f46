//! `calve-agent lend`: machines on a host that a server has borrowed over SSH, and the agent of a host that is a machine itself
//! ([`host`]). What is there of them lies in one directory, and is gone when they are.
//!
//! ```text
//!  DIR/agent-<hash>       this program, brought by the server
//!  DIR/lock               held while store paths are counted or removed
//!  DIR/store/<base name>  store paths of the machines that are there
//!  DIR/m/<id>/            a machine: its run directory, with
//!      lock               held by its keeper from the first to the last moment
//!      lend.json          the order; the store paths that it names are in use
//!      keeper.json, supervisor.json   the processes
//! ```
//! Each machine is a sandbox with its supervisor, as on the server's own host. The supervisor has a *keeper* as its parent, who
//! waits for its end, by lease, by the server's word or otherwise, and then removes what the machine had: with the server dead
//! the host is given back as well.

mod base;
mod connect;
mod end;
mod host;
mod keeper;
mod order;

use std::io::{self, Write};
use std::path::PathBuf;

use calve_wire::agent::{SandboxFailure, SandboxFailureKind};
use calve_wire::lend::Lent;

use base::Base;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Make the machine whose order comes on standard input.
    Lend,
    /// Pass standard input and output on to the agent of a machine.
    Connect(String),
    /// End a machine.
    GiveBack(String),
    /// Say which machines are there.
    List,
    /// Be the agent of the host itself, to whoever is at the other end of standard input and output.
    Host,
}

/// Does it, in this directory, and says how it went on standard output.
pub fn run(base: PathBuf, task: Task) -> anyhow::Result<()> {
    let base = Base::new(base)?;
    let said = match task {
        Task::Lend => order::lend(&base).map(|()| Lent::Ready),
        Task::Connect(id) => return connect::connect(&base, &id),
        Task::Host => return host::serve(),
        Task::GiveBack(id) => end::give_back(&base, &id).map(|()| Lent::Gone),
        Task::List => base.machines().map(|machines| Lent::Machines { machines }),
    };
    say(&said.unwrap_or_else(Lent::Failed));
    Ok(())
}

/// Tells the server; one that is gone hears nothing, and finds out later.
fn say(said: &Lent) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(said.to_line().as_bytes()).and_then(|()| stdout.flush());
}

/// A failure, whose kind comes from its cause.
fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> SandboxFailure {
    move |error| {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        SandboxFailure {
            kind: if full { SandboxFailureKind::NoSpace } else { SandboxFailureKind::Failed },
            message: format!("{what}: {error}"),
            hint: full.then(|| "free some space on the host".to_owned()),
        }
    }
}
