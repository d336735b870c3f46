//! The machine's side of calve: one static binary, two parts.
//!
//! [`init`] makes and reaps the machine's processes; [`agent`] supervises the workload, keeps its log and its lease, and
//! speaks with the server. They are forked apart before there is a runtime, and speak over a socket pair.
//!
//! *Invariant*: nothing here needs the server to be alive, and only this file exits.

mod agent;
mod confine_api;
mod enclosure;
mod init;
mod modes;
mod plain;
mod service;

use std::process::ExitCode;

use modes::Mode;

fn main() -> ExitCode {
    let arguments = std::env::args().collect();
    let ended = modes::parse(arguments).and_then(|mode| match mode {
        Mode::Plain { run_dir, device, ready } => plain::run(run_dir, device, ready),
        Mode::Service { server, token_file } => service::run(server, &token_file),
        Mode::Version => {
            println!("calve-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calve-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
