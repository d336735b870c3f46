//! A program in a machine and this terminal, tied together: output, input, signals, the end.

pub mod signals;
pub mod stdin;
pub mod terminal;

use bytes::Bytes;
use tokio::sync::mpsc;

use calve_wire::api::StreamControl;
use calve_wire::frame::Channel;
use calve_wire::machine::Exit;

use crate::client::{Received, Socket, SocketReader, SocketWriter};
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::session::signals::Signals;
use crate::ui::{Output, OutputStream};

/// Control messages that may wait while standard input is being sent: more than anybody types in that time.
const WAITING_CONTROLS: usize = 16;

/// This side of a session. It outlives a connection: after a new one it goes on where the output stopped.
pub struct Session {
    output: Output,
    signals: Signals,
    input: Input,
    /// Where the machine's console goes, if anywhere.
    console: Option<OutputStream>,
    written: Position,
}

/// Standard input on its way.
enum Input {
    /// The program was told that there is none.
    None,
    /// More may come.
    Open(mpsc::Receiver<Bytes>),
    /// Its end was reached; a new connection hears of it again.
    Ended,
}

/// Bytes of each channel that were written, to be skipped when a log is replayed.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    stdout: u64,
    stderr: u64,
    console: u64,
}

/// What to do about a signal.
pub enum Reaction {
    /// Nothing here; whatever had to be done is under way.
    Stay,
    /// Tell the other side.
    Send(StreamControl),
    /// End with this status, without waiting for the program.
    Leave(ExitStatus),
}

/// How a connection's session ended.
pub enum Ending {
    /// The program has ended and all of its output is written.
    Ended {
        /// How; none where it never ran.
        exit: Option<Exit>,
        /// What went wrong, for people.
        message: Option<String>,
    },
    /// A signal's reaction was to leave.
    Left(ExitStatus),
    /// Our own output cannot be written any more.
    OutputBroken(Failure),
    /// The connection broke off; the session can go on over a new one.
    Lost(Failure),
}

impl Session {
    /// A session that hears these signals, and passes standard input on if `stdin` says so.
    pub fn new(signals: Signals, stdin: bool, console: Option<OutputStream>) -> Outcome<Self> {
        let input = if stdin { Input::Open(stdin::start()?) } else { Input::None };
        Ok(Self { output: Output::start()?, signals, input, console, written: Position::default() })
    }

    /// Goes on until the program ends, the connection breaks or a signal says so.
    pub async fn drive(
        &mut self,
        (writer, reader): Socket,
        on_signal: &mut (dyn FnMut(i32) -> Reaction + Send),
    ) -> Outcome<Ending> {
        let (controls, waiting) = mpsc::channel(WAITING_CONTROLS);
        let receiving = receive(reader, self.output.sender(), self.console, &mut self.written);
        let sending = send(writer, waiting, &mut self.input);
        tokio::pin!(receiving, sending);
        loop {
            tokio::select! {
                ending = &mut receiving => return ending,
                never = &mut sending => match never {},
                signal = self.signals.next() => match on_signal(signal) {
                    Reaction::Stay => {}
                    // A full queue: the other side does not listen; a later signal may get through.
                    Reaction::Send(control) => drop(controls.try_send(control)),
                    Reaction::Leave(status) => return Ok(Ending::Left(status)),
                },
                failure = self.output.broken() => return Ok(Ending::OutputBroken(failure)),
            }
        }
    }

    /// The next signal, while there is no connection.
    pub async fn signal(&mut self) -> i32 {
        self.signals.next().await
    }

    /// Waits until everything is written.
    pub async fn finish(self) -> Outcome<()> {
        self.output.finish().await
    }
}

async fn receive(
    mut reader: SocketReader,
    output: mpsc::Sender<(OutputStream, Bytes)>,
    console: Option<OutputStream>,
    written: &mut Position,
) -> Outcome<Ending> {
    let mut skip = *written;
    loop {
        let (channel, bytes) = match reader.next().await {
            Ok(Some(Received::Data(channel, bytes))) => (channel, bytes),
            Ok(Some(Received::Control(StreamControl::Exit { exit, message, .. }))) => {
                return Ok(Ending::Ended { exit, message });
            }
            Ok(Some(Received::Control(StreamControl::Error { problem }))) => return Err(problem.into()),
            // Only clients say these.
            Ok(Some(Received::Control(StreamControl::Signal { .. } | StreamControl::Resize { .. }))) => {
                continue;
            }
            Ok(None) => {
                return Ok(Ending::Lost(Failure::failed(
                    "the server ended the connection before the program",
                )));
            }
            Err(failure) => return Ok(Ending::Lost(failure)),
        };
        let (to, skip, written) = match channel {
            Channel::Stdout => (Some(OutputStream::Stdout), &mut skip.stdout, &mut written.stdout),
            Channel::Stderr => (Some(OutputStream::Stderr), &mut skip.stderr, &mut written.stderr),
            Channel::Console => (console, &mut skip.console, &mut written.console),
            Channel::Stdin => continue,
        };
        let Some(to) = to else { continue };
        let already = usize::try_from(*skip).unwrap_or(usize::MAX).min(bytes.len());
        *skip -= already as u64;
        let new = bytes.slice(already..);
        if new.is_empty() {
            continue;
        }
        *written += new.len() as u64;
        if output.send((to, new)).await.is_err() {
            // The writing thread has ended: `Output::broken` says why.
            std::future::pending::<()>().await;
        }
    }
}

/// Sends control messages and, behind them, standard input. Never ends: a broken connection is the receiver's to report.
async fn send(
    mut writer: SocketWriter,
    mut controls: mpsc::Receiver<StreamControl>,
    input: &mut Input,
) -> std::convert::Infallible {
    if matches!(input, Input::Ended) {
        let _ = writer.data(Channel::Stdin, b"").await;
    }
    loop {
        let sent = tokio::select! {
            biased;
            Some(control) = controls.recv() => writer.text(&control).await,
            chunk = next_chunk(input) => writer.data(Channel::Stdin, &chunk).await,
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The next bytes of standard input; once, at its end, none.
async fn next_chunk(input: &mut Input) -> Bytes {
    match input {
        Input::Open(chunks) => match chunks.recv().await {
            Some(chunk) => chunk,
            None => {
                *input = Input::Ended;
                Bytes::new()
            }
        },
        Input::None | Input::Ended => std::future::pending().await,
    }
}
