//! The machine's side of calve: one static binary, two parts.
//!
//! [`init`] makes and reaps the machine's processes; [`agent`] supervises the workload, keeps its log and its lease, and
//! speaks with the server. They are forked apart before there is a runtime, and speak over a socket pair.
//!
//! *Invariant*: nothing here needs the server to be alive, and only this file exits.

mod agent;
mod confine_api;
mod enclosure;
mod guard;
mod guest;
mod init;
mod lend;
mod modes;
mod plain;
mod sandbox_mode;
mod service;

use std::process::ExitCode;

use modes::Mode;

fn main() -> ExitCode {
    let ended =
        if std::process::id() == 1 { guest::run() } else { modes::parse(std::env::args_os()).and_then(run) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calve-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mode: Mode) -> anyhow::Result<()> {
    match mode {
        Mode::Plain { run_dir, device, ready } => plain::run(run_dir, device, ready),
        Mode::Sandbox { run_dir, ready } => sandbox_mode::run(run_dir, ready),
        Mode::Standby { ready } => sandbox_mode::stand_by(ready),
        Mode::Service { server, token_file } => service::run(server, &token_file),
        Mode::Lend { base, task } => lend::run(base, task),
        Mode::Joined { user_data, key_file } => service::run_joined(&user_data, &key_file),
        Mode::Probe => sandbox_mode::probe(),
        Mode::Version => {
            println!("calve-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Mode::Guard { arguments } => guard::run(arguments),
        Mode::LiveStore => guard::serve_live_store(),
        Mode::BesideSystem => guest::run_beside_system(),
    }
}
