//! Streams of archives out of and into the machine.

use calve_wire::frame::Channel;
use tokio::sync::watch;

use super::{Inputs, Stream};
use crate::agent::Agent;
use crate::agent::pipe::Pipe;
use crate::agent::processes::{Process, Standard};
use crate::agent::program::null;
use crate::init::packet::{End, NOT_FOUND_CODE, NOT_STARTED_CODE, NotStarted, Work};

/// Most bytes of a failure's text.
const MESSAGE_MAX_BYTES: usize = 4096;

/// Sends an archive of `path`.
pub async fn read(stream: &Stream, path: String) -> Result<(), NotStarted> {
    let (output, stdout) = Pipe::from_process().map_err(|error| error.to_string())?;
    let stdin = null().map_err(|error| error.to_string())?;
    let task = Task::start(&stream.agent, Work::ReadTar { path }, stdin, stdout).await?;
    stream.opened();
    // The sender stays until the end, so that only the true end of the pipe counts.
    let (_writer_gone, gone) = watch::channel(false);
    let ((), ended) = tokio::join!(stream.send_all(&output, Channel::Stdout, gone), task.end());
    ended
}

/// Unpacks the archive that comes into `path`.
pub async fn write(stream: &Stream, path: String, inputs: &mut Inputs) -> Result<(), NotStarted> {
    let (input, stdin) = Pipe::to_process().map_err(|error| error.to_string())?;
    let stdout = null().map_err(|error| error.to_string())?;
    let task = Task::start(&stream.agent, Work::WriteTar { path }, stdin, stdout).await?;
    stream.opened();
    let feeding = async {
        inputs.write_to(&input).await;
        drop(input);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = task.end() => ended,
        () = feeding => Ok(()),
    }
}

/// Takes store paths into the store `path`.
pub async fn seed(stream: &Stream, path: String, inputs: &mut Inputs) -> Result<(), NotStarted> {
    let (input, stdin) = Pipe::to_process().map_err(|error| error.to_string())?;
    let (output, stdout) = Pipe::from_process().map_err(|error| error.to_string())?;
    let task = Task::start(&stream.agent, Work::Seed { path }, stdin, stdout).await?;
    stream.opened();
    let (_writer_gone, gone) = watch::channel(false);
    let feeding = async {
        inputs.write_to(&input).await;
        drop(input);
        std::future::pending::<()>().await;
    };
    let working = async { tokio::join!(stream.send_all(&output, Channel::Stdout, gone), task.end()).1 };
    tokio::select! {
        ended = working => ended,
        () = feeding => Ok(()),
    }
}

/// Does work that needs neither input nor output.
pub async fn perform(agent: &Agent, work: Work) -> Result<(), NotStarted> {
    let stdin = null().map_err(|error| error.to_string())?;
    let stdout = null().map_err(|error| error.to_string())?;
    Task::start(agent, work, stdin, stdout).await?.end().await
}

/// Work of a child of init that says on its standard error what went wrong.
struct Task {
    process: Process,
    errors: Pipe,
}

impl Task {
    async fn start(
        agent: &Agent,
        work: Work,
        stdin: std::os::fd::OwnedFd,
        stdout: std::os::fd::OwnedFd,
    ) -> Result<Self, NotStarted> {
        let (errors, stderr) = Pipe::from_process().map_err(|error| error.to_string())?;
        let standard = Standard::Descriptors([stdin, stdout, stderr]);
        let process = agent.processes.spawn(work, standard, true).await?;
        Ok(Self { process, errors })
    }

    async fn end(mut self) -> Result<(), NotStarted> {
        let mut message = Vec::new();
        let (_writer_gone, mut gone) = watch::channel(false);
        let reading = async {
            while let Some(bytes) = self.errors.read(&mut gone).await {
                message.extend_from_slice(&bytes);
                message.truncate(MESSAGE_MAX_BYTES);
            }
        };
        let (end, ()) = tokio::join!(self.process.end(), reading);
        match end {
            Some(End::Code(0)) => Ok(()),
            Some(End::Code(code)) if !message.is_empty() => {
                let message = String::from_utf8_lossy(&message).into_owned();
                let code = if code == NOT_FOUND_CODE { NOT_FOUND_CODE } else { NOT_STARTED_CODE };
                Err(NotStarted { message, code })
            }
            Some(End::Signal(signal)) => Err(format!("it was ended by signal {signal}").into()),
            Some(End::Code(code)) => Err(format!("it ended with code {code}").into()),
            None => Err("the machine ended meanwhile".into()),
        }
    }
}
