//! One run of the program: its pipes, its process, its end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use calve_wire::frame::Channel;
use calve_wire::machine::Program;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use super::begun::Running;
use super::pipe::Pipe;
use super::processes::{Process, Signals, Standard};
use super::{Agent, Event, log, stdin};
use crate::init::packet::{NotStarted, Work};

/// A program that was started.
pub struct Run {
    signals: Signals,
    writer_gone: watch::Sender<bool>,
    collectors: [JoinHandle<()>; 2],
    feeder: AbortHandle,
}

/// Copies the work tree, where the program has one, into its directory.
pub async fn copy_work_tree(agent: &Agent, program: &Program) -> Result<(), NotStarted> {
    let Some(tree) = &program.work_tree else { return Ok(()) };
    let cwd = program.cwd.as_ref().ok_or("a work tree needs a working directory that it is copied to")?;
    let work = Work::CopyTree { from: tree.to_string(), to: cwd.clone() };
    super::streams::files::perform(agent, work)
        .await
        .map_err(|why| format!("the work tree cannot be copied: {}", why.message).into())
}

/// Starts the program; its end is told as an event.
pub async fn start(agent: &Rc<Agent>, program: &Program) -> Result<Run, NotStarted> {
    let no_pipe = |error: io::Error| format!("no pipe can be made: {error}");
    let (output, stdout) = Pipe::from_process().map_err(no_pipe)?;
    let (errors, stderr) = Pipe::from_process().map_err(no_pipe)?;
    let (input, stdin) = if program.stdin {
        let (input, stdin) = Pipe::to_process().map_err(no_pipe)?;
        (Some(input), stdin)
    } else {
        (None, null().map_err(no_pipe)?)
    };
    let work = Work::Execute {
        argv: [&program.path].into_iter().chain(&program.args).cloned().collect(),
        name: program.own_name(),
        env: program.env.clone(),
        cwd: program.cwd.clone(),
    };
    let standard = Standard::Descriptors([stdin, stdout, stderr]);
    let process = agent.processes.spawn(work, standard, true).await?;
    Ok(watch(agent, process, input, [output, errors]))
}

/// Takes over the program that was begun before the agent.
pub fn adopt(agent: &Rc<Agent>, begun: Running) -> io::Result<Run> {
    let [output, errors] = begun.outputs;
    let outputs = [Pipe::new(output)?, Pipe::new(errors)?];
    let input = begun.input.map(Pipe::new).transpose()?;
    Ok(watch(agent, agent.processes.adopt(begun.id), input, outputs))
}

fn watch(agent: &Rc<Agent>, process: Process, input: Option<Pipe>, [output, errors]: [Pipe; 2]) -> Run {
    let process = process.kept();
    let (writer_gone, gone) = watch::channel(false);
    let collectors = [(output, Channel::Stdout), (errors, Channel::Stderr)].map(|(pipe, channel)| {
        tokio::task::spawn_local(log::collect(agent.clone(), pipe, channel, gone.clone()))
    });
    let feeder = tokio::task::spawn_local(stdin::feed(agent.clone(), input)).abort_handle();
    let signals = process.signals();
    tokio::task::spawn_local(tell_end(agent.clone(), process));
    Run { signals, writer_gone, collectors, feeder }
}

async fn tell_end(agent: Rc<Agent>, mut process: Process) {
    // Without an answer init is gone, which the supervisor learns by itself.
    if let Some(end) = process.end().await {
        agent.tell(Event::Exited(end));
    }
}

impl Run {
    /// Sends a signal to the program's group.
    pub fn signal(&self, signal: i32) {
        self.signals.send(signal);
    }

    /// The program is dead: reads what is left of its output. Who inherited its pipes is no longer listened to.
    pub async fn drain(self) {
        self.feeder.abort();
        self.writer_gone.send_replace(true);
        for collector in self.collectors {
            let _ = collector.await;
        }
    }
}

/// Nothing to read, and nowhere to write.
pub fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}
