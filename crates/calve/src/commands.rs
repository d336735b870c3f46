//! The commands: one file each; this is their table of contents.

mod adopt;
mod cache;
mod closure;
mod completions;
mod cost;
mod cp;
mod diff;
mod doctor;
mod drift;
mod events;
mod exec;
mod extend;
mod forward;
mod history;
mod image;
mod logs;
mod mount;
mod names;
mod provider;
mod prune;
mod ps;
mod pull;
mod push;
mod reap;
#[cfg(test)]
mod reference;
mod rm;
mod rollback;
mod run;
mod server;
mod status;
mod stop;
mod switch;
mod version;
mod wait;

use clap::{Parser, Subcommand};

use crate::failure::{Failure, Outcome};

/// The variables that more than one command heeds.
const ENVIRONMENT: &str = "\
Environment:
  CALVE_SERVER        The server, as http://HOST:PORT; without it one is started here on demand
  CALVE_TOKEN         The token of that server
  CALVE_HOME          Where everything is kept; else in the directories that XDG names
  CALVE_CACHE         The cache of push, pull, mount and run --store lazy
  CALVE_CACHE_TOKEN   The token of that cache
  CALVE_TRUSTED_KEYS  Public keys whose signatures count, beside those that Nix trusts; separated by spaces
  CALVE_KERNEL        The kernel of guests; else the newest of this host that can be read
  CALVE_AGENT         The agent's program; else the one beside calve
  CALVE_LOG           How much a server and a cache log: error, warn, info, debug or trace [default: info]
  NO_COLOR            No colours";

/// Runs any Nix closure on any machine with one command, and lets go of the machine when its lease ends.
///
/// Exit codes: a program's own (128 + n where signal n ended it) for run, exec and wait; 1 where the answer is no; 2 for
/// arguments that make no sense; 3 and 4 where a switch was rolled back or failed; 125 where calve could not do it; 126 for a program that cannot be executed; 127 for a
/// path, program or machine that does not exist.
#[derive(Debug, Parser)]
#[command(name = "calve", version, max_term_width = 100, disable_help_subcommand = true, after_long_help = ENVIRONMENT)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Ps(ps::Args),
    Status(status::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Cp(cp::Args),
    Forward(forward::Args),
    Wait(wait::Args),
    Stop(stop::Args),
    Rm(rm::Args),
    Prune(prune::Args),
    Extend(extend::Args),
    Switch(switch::Args),
    Rollback(rollback::Args),
    History(history::Args),
    Drift(drift::Args),
    Events(events::Args),
    Doctor(doctor::Args),
    Server(server::Args),
    Push(push::Args),
    Pull(pull::Args),
    Mount(mount::Args),
    Closure(closure::Args),
    Diff(diff::Args),
    Cache(cache::Args),
    Provider(provider::Args),
    Adopt(adopt::Args),
    Image(image::Args),
    Reap(reap::Args),
    Cost(cost::Args),
    Completions(completions::Args),
    Version(version::Args),
}

/// Does what was asked.
pub fn dispatch(cli: Cli) -> Outcome {
    if let Command::Mount(args) = cli.command {
        return mount::run(args);
    }
    // One thread: a command waits for one thing at a time, and threads cost the start of each.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("the program cannot begin").caused_by(error))?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(*args).await,
            Command::Ps(args) => ps::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Logs(args) => logs::run(args).await,
            Command::Exec(args) => exec::run(args).await,
            Command::Cp(args) => cp::run(args).await,
            Command::Forward(args) => forward::run(args).await,
            Command::Wait(args) => wait::run(args).await,
            Command::Stop(args) => stop::run(args).await,
            Command::Rm(args) => rm::run(args).await,
            Command::Prune(args) => prune::run(args).await,
            Command::Extend(args) => extend::run(args).await,
            Command::Switch(args) => switch::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
            Command::History(args) => history::run(args).await,
            Command::Drift(args) => drift::run(args).await,
            Command::Events(args) => events::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Server(args) => server::run(args).await,
            Command::Push(args) => push::run(args).await,
            Command::Pull(args) => pull::run(args).await,
            Command::Mount(_) => unreachable!("it has a runtime of its own, above"),
            Command::Closure(args) => closure::run(args).await,
            Command::Diff(args) => diff::run(args).await,
            Command::Cache(args) => cache::run(args).await,
            Command::Provider(args) => provider::run(args).await,
            Command::Adopt(args) => adopt::run(args).await,
            Command::Image(args) => image::run(args).await,
            Command::Reap(args) => reap::run(args).await,
            Command::Cost(args) => cost::run(args).await,
            Command::Completions(args) => completions::run(args),
            Command::Version(args) => version::run(args).await,
        }
    });
    // Threads that still read a file or standard input end with the process.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
