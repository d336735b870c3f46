//! `calve-switch`: gives a host another system, and its former one back where nobody confirms the new one in time.
//!
//! The server brings this program to the host and runs its verbs over the agent's link. `begin` leaves a process of its own
//! behind, which is nobody's child and needs neither agent nor server: it writes every step to disk before it takes it
//! ([`course`]), so that it, or the next boot, can go on from there.
//!
//! *Invariant*: one thread, no runtime, no network. What a person or the server sees is JSON on standard output.

mod begin;
mod daemon;
mod disk;
mod facts;
mod host;
mod loader;
mod profile;
mod program;
mod record;
mod socket;
mod store;
mod supervise;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use calve_wire::system::HostAnswer;

use host::Host;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calve-switch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: Vec<String>) -> anyhow::Result<()> {
    let mut root = PathBuf::from("/");
    if words.first().is_some_and(|word| word == "--root") {
        words.remove(0);
        anyhow::ensure!(!words.is_empty(), "--root needs a directory");
        root = words.remove(0).into();
    }
    let host = Host::at(root)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["begin"] => say(&begin::begin(&host, &std::io::read_to_string(std::io::stdin())?)?),
        ["status"] => say(&begin::status(&host)?),
        ["confirm", id] => say(&socket::confirm(&host, id)?),
        ["back", id, why] => say(&begin::back(&host, id, why)?),
        ["resume"] => begin::resume(&host),
        ["facts"] => say(&facts::facts(&host)?),
        ["room", id] => say(&store::room(&host, id, &std::io::read_to_string(std::io::stdin())?)?),
        ["install", sum] => facts::install(&host, sum),
        ["version"] => say(&facts::version(&host)),
        [] => {
            bail!("a verb is missing: begin, status, confirm, back, resume, facts, room, install, version")
        }
        _ => bail!("{words:?} is no verb of calve-switch: calve runs it, people rarely do"),
    }
}

fn say(answer: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(answer).context("the answer")?);
    Ok(())
}

fn refused(message: impl Into<String>) -> HostAnswer {
    HostAnswer::Refused { message: message.into() }
}
