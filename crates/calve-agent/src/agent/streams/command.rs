//! Streams to commands.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::time::Duration;

use calve_wire::agent::WindowSize;
use calve_wire::frame::Channel;
use calve_wire::machine::{Exit, ExitCause};
use rustix::termios::Winsize;
use tokio::sync::{mpsc, watch};

use super::{Inputs, Order, Stream};
use crate::agent::Agent;
use crate::agent::pipe::Pipe;
use crate::agent::processes::{Signals, Standard};
use crate::agent::program::null;
use crate::init::PATH_DEFAULT;
use crate::init::packet::{End, NotStarted, Work};

/// Time that a terminal's last output has to come through after its command has ended, where something else still holds
/// the terminal: the kernel moves it in the background.
const TERMINAL_LINGER: Duration = Duration::from_millis(200);
/// Longest wait for a system to have begun: one in emulation takes a minute from its first process to its services.
const READY_MAX: Duration = Duration::from_secs(90);
/// Pause between two looks, which cost a few system calls.
const READY_PAUSE: Duration = Duration::from_millis(100);
/// What a terminal takes for the end of input (`VEOF`, termios(3)).
const END_OF_INPUT: &[u8] = &[4];

/// A command as the server asks for it.
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the machine's environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Whether standard input will come.
    pub stdin: bool,
    /// The terminal's size, where one is wanted.
    pub tty: Option<WindowSize>,
}

/// The work of a command in the machine's environment.
pub fn work(agent: &Agent, argv: Vec<String>, env: BTreeMap<String, String>, cwd: Option<String>) -> Work {
    let mut whole = agent.environment.borrow().clone();
    whole.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    whole.extend(env);
    Work::Execute { argv, name: None, env: whole, cwd }
}

/// How a process ended, with what was behind it.
pub fn exit(end: End, cause: ExitCause) -> Exit {
    match end {
        End::Code(code) => Exit { code: Some(code), signal: None, cause },
        End::Signal(signal) => Exit { code: None, signal: Some(signal), cause },
    }
}

/// Runs the command; all of its output has been sent when this returns.
pub async fn serve(
    stream: &Stream,
    command: Command,
    inputs: &mut Inputs,
    orders: mpsc::UnboundedReceiver<Order>,
) -> Result<Exit, NotStarted> {
    let Command { argv, env, cwd, stdin, tty } = command;
    let agent = &stream.agent;
    let work = work(agent, argv, env, cwd);
    let no_pipe = |error: io::Error| format!("no pipe can be made: {error}");
    let (standard, pipes) = match tty {
        Some(size) => (Standard::Terminal(size), None),
        None => {
            let (standard, pipes) = three_pipes(stdin).map_err(no_pipe)?;
            (Standard::Descriptors(standard), Some(pipes))
        }
    };
    until_ready(agent).await;
    let mut process = agent.processes.spawn(work, standard, false).await?;
    let pipes = match (pipes, process.terminal.take()) {
        (Some(pipes), _) => pipes,
        (None, Some(master)) => Pipes {
            input: stdin.then_some(Input::Terminal),
            output: Pipe::new(master).map_err(no_pipe)?,
            errors: None,
        },
        (None, None) => return Err("the machine gave no terminal".into()),
    };
    stream.opened();
    let (writer_gone, gone) = watch::channel(false);
    let signals = process.signals();
    let side = async {
        tokio::join!(feed(pipes.input, &pipes.output, inputs), follow(&signals, &pipes.output, orders));
        std::future::pending::<()>().await;
    };
    let outputs = async {
        let errors = async {
            if let Some(errors) = &pipes.errors {
                stream.send_all(errors, Channel::Stderr, gone.clone()).await;
            }
        };
        tokio::join!(stream.send_all(&pipes.output, Channel::Stdout, gone.clone()), errors);
    };
    let (mut outputs, mut side, mut outputs_ended) = (pin!(outputs), pin!(side), false);
    let end = loop {
        tokio::select! {
            end = process.end() => break end,
            () = &mut outputs, if !outputs_ended => outputs_ended = true,
            () = &mut side => {}
        }
    };
    if !outputs_ended && (tty.is_none() || tokio::time::timeout(TERMINAL_LINGER, &mut outputs).await.is_err())
    {
        writer_gone.send_replace(true);
        outputs.await;
    }
    let end = end.ok_or("the machine ended with the command")?;
    Ok(exit(
        end,
        if end == End::Signal(libc::SIGKILL) { agent.enclosure.exit_cause() } else { ExitCause::Normal },
    ))
}

/// Waits until the machine has what commands need, but not for ever: then the command itself says what is missing.
async fn until_ready(agent: &Agent) {
    let ready = async {
        while !agent.enclosure.is_ready_for_commands() {
            tokio::time::sleep(READY_PAUSE).await;
        }
    };
    let _ = tokio::time::timeout(READY_MAX, ready).await;
}

struct Pipes {
    input: Option<Input>,
    output: Pipe,
    /// None with a terminal, which has one output.
    errors: Option<Pipe>,
}

enum Input {
    Pipe(Pipe),
    /// The same descriptor as the output.
    Terminal,
}

fn three_pipes(stdin: bool) -> io::Result<([std::os::fd::OwnedFd; 3], Pipes)> {
    let (input, stdin) = if stdin {
        let (input, stdin) = Pipe::to_process()?;
        (Some(Input::Pipe(input)), stdin)
    } else {
        (None, null()?)
    };
    let (output, stdout) = Pipe::from_process()?;
    let (errors, stderr) = Pipe::from_process()?;
    Ok(([stdin, stdout, stderr], Pipes { input, output, errors: Some(errors) }))
}

/// Hands the input to the command until its end; without one, what comes is dropped.
async fn feed(input: Option<Input>, terminal: &Pipe, inputs: &mut Inputs) {
    match input {
        Some(Input::Pipe(pipe)) => inputs.write_to(&pipe).await,
        Some(Input::Terminal) => {
            inputs.write_to(terminal).await;
            let _ = terminal.write_all(END_OF_INPUT).await;
        }
        None => {
            while let Some(bytes) = inputs.next().await {
                inputs.used(bytes.len());
            }
        }
    }
}

/// Follows signals and terminal sizes.
async fn follow(signals: &Signals, terminal: &Pipe, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Signal(signal) => signals.send(signal),
            Order::Resize(WindowSize { rows, columns }) => {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                // A command without a terminal has no size.
                let _ = rustix::termios::tcsetwinsize(terminal.descriptor(), size);
            }
        }
    }
}
