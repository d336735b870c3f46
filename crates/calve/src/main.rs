//! `calve`: run any Nix closure on any machine with one command.
//!
//! *Invariant*: speaks to the server through the public `/v1` and `/cache` alone, and to providers where no server may be needed; only `ui` prints, only this file ends the process,
//! and it does nothing but parse, dispatch and end with the exit code.

mod args;
mod caches;
mod client;
mod commands;
mod dirs;
mod failure;
mod lazy;
mod resolve;
mod session;
mod ship;
mod ui;

use clap::{CommandFactory, Parser};

fn main() {
    if std::env::var_os("COMPLETE").is_some() {
        clap_complete::CompleteEnv::with_factory(commands::Cli::command).complete();
    }
    let outcome = commands::Cli::try_parse().map(commands::dispatch);
    let status = match outcome {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => ui::failure(&failure),
        Err(error) => ui::usage(error),
    };
    // Not a return from main: a thread may still wait for standard input, and nobody is left to end it.
    std::process::exit(status.code());
}
