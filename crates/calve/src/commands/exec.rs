use std::path::PathBuf;

use calve_core::MachineName;
use calve_wire::api::{ExecRequest, StreamControl};
use clap_complete::ArgValueCompleter;

use super::{names, run};
use crate::args::{gather_environment, parse_name};
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::session::signals::{LETTING_GO, PASSED_ON, RESIZED, Signals};
use crate::session::terminal::{self, RawMode};
use crate::session::{Ending, Reaction, Session};

/// Interrupts after which this program ends although the command goes on.
const INTERRUPTS_TO_LEAVE: u32 = 3;

/// Runs a command in a machine, and ends with its exit code.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pass standard input on to the command.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable, or take it from yours.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file with one NAME=VALUE a line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Run the command in this directory of the machine.
    #[arg(short = 'w', long, value_name = "DIR")]
    workdir: Option<String>,
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// The command and its arguments; a bare name is looked up in the machine's PATH.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

pub async fn run(args: Args) -> Outcome {
    let mut env = gather_environment(&args.env_file, &args.env, |name| std::env::var(name).ok())?;
    if args.tty
        && !env.contains_key("TERM")
        && let Ok(term) = std::env::var("TERM")
    {
        env.insert("TERM".to_owned(), term);
    }
    let client = Client::connect().await?;
    let request = ExecRequest {
        argv: args.argv,
        env,
        cwd: args.workdir,
        stdin: args.interactive,
        tty: args.tty.then(terminal::size),
    };
    let mut heard = [&LETTING_GO[..], &PASSED_ON[..]].concat();
    if args.tty {
        heard.push(RESIZED);
    }
    let (mut writer, reader) = client.websocket(&names::path(&args.name, "/exec")).await?;
    let signals = Signals::hear(&heard)?;
    writer.text(&request).await?;
    let raw = (args.tty && args.interactive).then(RawMode::enter);
    let mut session = Session::new(signals, args.interactive, None)?;
    let mut interrupts = 0;
    let mut on_signal = |signal| {
        if signal == RESIZED {
            return Reaction::Send(StreamControl::Resize { size: terminal::size() });
        }
        interrupts += u32::from(signal == libc::SIGINT);
        if signal == libc::SIGHUP || interrupts >= INTERRUPTS_TO_LEAVE {
            // The broken connection tells the server to end the command.
            return Reaction::Leave(ExitStatus::Program(128 + signal));
        }
        Reaction::Send(StreamControl::Signal { signal })
    };
    let ending = session.drive((writer, reader), &mut on_signal).await;
    let outcome = match ending {
        Ok(Ending::Ended { exit, message }) => {
            session.finish().await.and_then(|()| run::conclude(exit, message))
        }
        Ok(Ending::Left(status)) => Ok(status),
        Ok(Ending::OutputBroken(failure) | Ending::Lost(failure)) => Err(failure),
        // What the machine says of the command is not about our arguments.
        Err(failure) if failure.status == ExitStatus::Usage => {
            Err(Failure { status: ExitStatus::Failed, ..failure })
        }
        Err(failure) => Err(failure),
    };
    // Before anything is said about the end: in raw mode lines would run down the screen as stairs.
    drop(raw);
    outcome
}
