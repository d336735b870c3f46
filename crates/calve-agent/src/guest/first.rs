//! The shortest way to the first line of a program whose order came with the machine: in the first process, without a
//! runtime, as far as all goes as usual. The agent, which is made behind it, takes over whatever was done.
//!
//! ```text
//!  port opened ─▶ the server's hello is there ─▶ program begun ─▶ welcome ─▶ its first words ─▶ agent
//!                                                (anything else at any place) ──────────────────▶ agent
//! ```
//! The server says hello to a machine that it has written down, so the order is followed no sooner than it would be given.

use std::ffi::c_char;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, ToAgent};
use calve_wire::frame::{Channel, Frame, LogEntry, PREAMBLE_BYTES, Token};
use calve_wire::machine::{HealthCheck, Program, Restart};
use calve_wire::start::{self, START_ITEM, START_MAX_BYTES, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PipeFlags;
use serde::Deserialize;

use super::fw_cfg;
use super::parameters::Parameters;
use crate::agent::begun::{Begun, Running, Told};
use crate::agent::program::null;
use crate::agent::transport::device::{self, Opened};
use crate::agent::unix_ms;
use crate::confine_api::Confine;
use crate::init::FIRST_ID;
use crate::init::begin::{self, Image};
use crate::init::packet::{NotStarted, Work};

/// Time for a hello that was sent before the guest had its first process: QEMU has to hand it over only.
const HELLO_MAX: Duration = Duration::from_millis(250);
/// Time for the program's first words, while nobody else wants anything: a large program in emulation takes longer, and then
/// the agent's own start is no matter.
const WORDS_MAX: Duration = Duration::from_secs(1);
/// Most bytes of them; the agent reads the rest.
const WORDS_MAX_BYTES: usize = 4096;

/// The part of [`ToAgent::Hello`] that matters here.
#[derive(Deserialize)]
struct Hello<'a> {
    r#type: &'a str,
    version: u32,
    log_seq: u64,
    remaining: Remaining,
}

/// The port of the server, where it has its usual name.
pub(super) fn open_port() -> Option<Opened> {
    let device = device::open(Path::new(super::port::USUAL_DEVICE)).ok()?;
    Some(Opened { device, received: Vec::new() })
}

/// Goes the way as far as it can: none where the program was not begun. Whatever was received stays with the port.
pub(super) fn begin(
    parameters: &Parameters,
    port: &mut Opened,
    confine: &dyn Confine,
    notes: &[String],
) -> anyhow::Result<Option<Begun>> {
    let Some((token, order)) = expected(parameters) else { return Ok(None) };
    let Some(order) = start::decode(&order) else { return Ok(None) };
    let Some(remaining) = hear_hello(port, &token) else { return Ok(None) };
    let over = |remaining: Remaining| remaining.until_deadline_ms == Some(0);
    if over(remaining) || over(parameters.remaining_now()) {
        return Ok(None);
    }
    let Some(mut pipes) = Pipes::new(order.stdin) else { return Ok(None) };
    let (started, told, log) = match start(&order, &mut pipes, confine) {
        Ok(()) => {
            let running = pipes.ours;
            drop(pipes.theirs);
            let (told, log) = speak(port, &token, notes, &running);
            (Ok(running), told, log)
        }
        Err(why) => (Err(why), None, None),
    };
    // From here on the program counts as begun: a guest that did not know which one is better ended.
    let (program, restart, health) = whole(&order).context("the order that came with the machine")?;
    Ok(Some(Begun { program, restart, health, started, told, log: log.into_iter().collect() }))
}

/// The server's token, and the order that came with the machine.
fn expected(parameters: &Parameters) -> Option<(Token, Vec<u8>)> {
    if !parameters.start {
        return None;
    }
    Some((parameters.token.parse().ok()?, fw_cfg::read(START_ITEM, START_MAX_BYTES).ok()?))
}

/// Reads what a server says first to an agent of which it knows nothing; none where that is not all that it said.
fn hear_hello(port: &mut Opened, token: &Token) -> Option<Remaining> {
    let give_up = Instant::now() + HELLO_MAX;
    loop {
        if let Some(heard) = heard(&port.received, token) {
            return heard;
        }
        let mut polled = [PollFd::new(&port.device, PollFlags::IN)];
        poll(&mut polled, Some(&timespec(give_up.saturating_duration_since(Instant::now())))).ok()?;
        let mut bytes = [0; 1024];
        // Where nobody is at the other end, or nothing came in time, this is empty or an error.
        let count = rustix::io::read(&port.device, &mut bytes).ok().filter(|count| *count > 0)?;
        port.received.extend_from_slice(&bytes[..count]);
    }
}

/// None where more has to come; none inside where it is something else than a first hello.
fn heard(bytes: &[u8], token: &Token) -> Option<Option<Remaining>> {
    let (preamble, frames) = bytes.split_at_checked(PREAMBLE_BYTES)?;
    if preamble != token.preamble() {
        return Some(None);
    }
    match Frame::decode(frames) {
        Ok(None) => None,
        Ok(Some((Frame::Control(json), length))) if length == frames.len() => {
            let hello: Option<Hello<'_>> = serde_json::from_slice(&json).ok();
            let first = |hello: &Hello<'_>| {
                hello.r#type == "hello" && hello.version == AGENT_PROTOCOL_VERSION && hello.log_seq == 0
            };
            Some(hello.filter(first).map(|hello| hello.remaining))
        }
        _ => Some(None),
    }
}

/// Both ends of the program's standard descriptors.
struct Pipes {
    ours: Running,
    theirs: [OwnedFd; 3],
}

impl Pipes {
    fn new(stdin: bool) -> Option<Self> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok();
        let ((output, stdout), (errors, stderr)) = (pipe()?, pipe()?);
        let (stdin, input) = match stdin {
            true => pipe().map(|(stdin, input)| (stdin, Some(input)))?,
            false => (null().ok()?, None),
        };
        let theirs = [stdin, stdout, stderr];
        // Where this process has no standard descriptors of its own, these would overwrite each other in the program.
        let apart = theirs.iter().all(|descriptor| descriptor.as_raw_fd() > 2);
        apart.then_some(Self {
            ours: Running { id: FIRST_ID, pid: 0, input, outputs: [output, errors] },
            theirs,
        })
    }
}

fn start(order: &Start<'_>, pipes: &mut Pipes, confine: &dyn Confine) -> Result<(), NotStarted> {
    let list = |texts: &[&[u8]]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr().cast()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (list(&order.argv), list(&order.env));
    let image = Image { program: order.program, cwd: order.cwd, argv: &argv, env: &env };
    let standard = pipes.theirs.each_ref().map(OwnedFd::as_fd);
    pipes.ours.pid = begin::begin(&image, standard, confine, || work(order))?;
    Ok(())
}

/// The same for the sentence why it was not started.
fn work(order: &Start<'_>) -> Work {
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned();
    let mut argv: Vec<String> = order.argv.iter().map(|argument| text(argument)).collect();
    if let Some(name) = argv.first_mut() {
        *name = text(order.program);
    }
    Work::Execute { argv, name: None, env: Default::default(), cwd: Some(text(order.cwd)) }
}

/// Greets the server and sends it the program's first words: what it was told, and what the program said.
fn speak(
    port: &Opened,
    token: &Token,
    notes: &[String],
    running: &Running,
) -> (Option<Told>, Option<LogEntry>) {
    let status = Status { phase: Phase::Running, starts: 1, notes: notes.to_vec(), ..Status::waiting() };
    let mut bytes = token.preamble().to_vec();
    if !send(port, &welcome(&status), &mut bytes) {
        return (None, None);
    }
    let Some(log) = first_words(port, running) else { return (Some(Told { status, log_seq: 0 }), None) };
    let frame = Frame::Log(log);
    let log_seq = u64::from(send(port, &frame, &mut Vec::new()));
    let Frame::Log(log) = frame else { unreachable!("made above") };
    (Some(Told { status, log_seq }), Some(log))
}

fn welcome(status: &Status) -> Frame {
    let welcome = FromAgent::Welcome {
        version: AGENT_PROTOCOL_VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        status: status.clone(),
    };
    Frame::Control(serde_json::to_vec(&welcome).expect("a message holds nothing that JSON cannot say"))
}

/// Sends a frame behind `bytes`; the port takes all of so little at once, or nothing.
fn send(port: &Opened, frame: &Frame, bytes: &mut Vec<u8>) -> bool {
    frame.encode(bytes);
    rustix::io::write(&port.device, bytes).is_ok()
}

/// Waits for the program's first words; none where something else comes before them.
fn first_words(port: &Opened, running: &Running) -> Option<LogEntry> {
    let [output, errors] = &running.outputs;
    let mut polled = [output, errors, &port.device].map(|descriptor| PollFd::new(descriptor, PollFlags::IN));
    poll(&mut polled, Some(&timespec(WORDS_MAX))).ok()?;
    let [has_output, has_errors, _] = polled.map(|polled| polled.revents().contains(PollFlags::IN));
    let (channel, pipe) = match (has_output, has_errors) {
        (true, _) => (Channel::Stdout, output),
        (false, true) => (Channel::Stderr, errors),
        (false, false) => return None,
    };
    let mut bytes = vec![0; WORDS_MAX_BYTES];
    let count = rustix::io::read(pipe, &mut bytes).ok().filter(|count| *count > 0)?;
    bytes.truncate(count);
    Some(LogEntry { seq: 1, time_unix_ms: unix_ms(), channel, bytes })
}

/// The whole order.
fn whole(order: &Start<'_>) -> anyhow::Result<(Program, Restart, Option<HealthCheck>)> {
    match serde_json::from_slice(order.message)? {
        ToAgent::Start { program: Some(program), restart, health } => Ok((program, restart, health)),
        _ => bail!("no program is ordered"),
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_first_hello_begins_the_program() {
        let token: Token = "00112233445566778899aabbccddeeff".parse().expect("a token");
        let remaining = Remaining { until_deadline_ms: Some(7), grace_ms: 1 };
        let said = |messages: &[ToAgent]| {
            let mut bytes = token.preamble().to_vec();
            for message in messages {
                Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
            }
            bytes
        };
        let hello = |version, log_seq| ToAgent::Hello { version, log_seq, remaining };
        let first = said(&[hello(AGENT_PROTOCOL_VERSION, 0)]);
        assert_eq!(heard(&first, &token), Some(Some(remaining)));
        for length in 0..first.len() {
            assert_eq!(heard(&first[..length], &token), None, "{length}");
        }
        for other in [
            said(&[hello(AGENT_PROTOCOL_VERSION, 1)]),
            said(&[hello(AGENT_PROTOCOL_VERSION + 1, 0)]),
            said(&[hello(AGENT_PROTOCOL_VERSION, 0), ToAgent::Stop { grace_ms: 0 }]),
            said(&[ToAgent::PowerOff]),
            vec![0; 200],
        ] {
            assert_eq!(heard(&other, &token), Some(None));
        }
    }
}
