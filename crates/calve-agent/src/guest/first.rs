//! The shortest way to the first line of a program whose order came with the machine: in the first process, without a
//! runtime, as far as all goes as usual. The agent, which is made behind it, takes over whatever was done.
//!
//! ```text
//!  port opened ─▶ the server's hello is there ─▶ program begun ─▶ welcome ─▶ its first words ─▶ agent
//!                                                (anything else at any place) ──────────────────▶ agent
//! ```
//! The server says hello to a machine that it has written down, so the order is followed no sooner than it would be given.

use std::ffi::{CStr, c_char};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, Status, ToAgent};
use calve_wire::frame::{Channel, Frame, LogEntry, PREAMBLE_BYTES, PREAMBLE_MAGIC};
use calve_wire::machine::{HealthCheck, Program, Restart};
use calve_wire::start::{self, START_ITEM, START_MAX_BYTES, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

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

/// Time for a hello of somebody who is there: it was sent before the guest had its first process, and a busy host has to hand
/// it over only. Nobody is not waited for.
const HELLO_MAX: Duration = Duration::from_secs(2);
/// Time for the program's first words, while nobody else wants anything: a large program in emulation takes longer, and then
/// the agent's own start is no matter.
const WORDS_MAX: Duration = Duration::from_secs(1);
/// Most bytes of them; the agent reads the rest.
const WORDS_MAX_BYTES: usize = 4096;

/// As much of the program's file as is asked of the disk while other things are done: what most programs begin with.
const AHEAD_BYTES: usize = 2 * 1024 * 1024;

/// A first hello as the server's JSON has it, up to the lease: the version is [`AGENT_PROTOCOL_VERSION`]. Comparing costs a
/// start in emulation a tenth of parsing.
const HELLO: &str = r#"{"type":"hello","version":1,"log_seq":0,"remaining":{"until_deadline_ms":"#;
/// What stands between the lease's two numbers.
const HELLO_GRACE: &str = r#","grace_ms":"#;
/// The welcome of an agent whose program has begun and of which nothing else is to be said, likewise.
const WELCOME: &str = concat!(
    r#"{"type":"welcome","version":1,"agent":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","status":{"phase":"running","starts":1,"last_exit":null,"healthy":null,"expired":false,"notes":[],"log_seq":0}}"#
);

/// What is needed to go this way.
pub(super) struct First {
    preamble: [u8; PREAMBLE_BYTES],
    order: Vec<u8>,
    port: Opened,
}

impl First {
    /// None where no order came with the machine, or the port is not there by its usual name yet.
    pub(super) fn prepare(parameters: &Parameters) -> Option<Self> {
        if !parameters.start {
            return None;
        }
        let mut preamble = [0; PREAMBLE_BYTES];
        let (magic, token) = preamble.split_at_mut(PREAMBLE_MAGIC.len());
        magic.copy_from_slice(&PREAMBLE_MAGIC);
        if parameters.token.len() != token.len() {
            return None;
        }
        token.copy_from_slice(parameters.token.as_bytes());
        let order = fw_cfg::read(START_ITEM, START_MAX_BYTES).ok()?;
        // What the server has said already comes while the rest of the guest is being made.
        let device = device::open(Path::new(super::port::USUAL_DEVICE)).ok()?;
        Some(Self { preamble, order, port: Opened { device, received: Vec::new() } })
    }

    /// Asks the disk for the program, whose store is there now.
    pub(super) fn read_ahead(&self) {
        let path = start::decode(&self.order).and_then(|order| CStr::from_bytes_with_nul(order.program).ok());
        let file = path
            .and_then(|path| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok());
        if let Some(file) = file {
            // SAFETY: a system call on an open descriptor. Where it fails, the program is read when it is needed.
            unsafe { libc::readahead(file.as_raw_fd(), 0, AHEAD_BYTES) };
        }
    }

    /// Goes the way as far as it can: nothing of a program where that was not begun. The port is open in any case, with
    /// whatever was received.
    pub(super) fn begin(
        mut self,
        parameters: &Parameters,
        confine: &dyn Confine,
        notes: &[String],
    ) -> anyhow::Result<(Opened, Option<Begun>)> {
        let begun = self.try_begin(parameters, confine, notes)?;
        Ok((self.port, begun))
    }

    fn try_begin(
        &mut self,
        parameters: &Parameters,
        confine: &dyn Confine,
        notes: &[String],
    ) -> anyhow::Result<Option<Begun>> {
        let Some(remaining) = self.hear_hello() else { return Ok(None) };
        let over = |remaining: Remaining| remaining.until_deadline_ms == Some(0);
        if over(remaining) || over(parameters.remaining_now()) {
            return Ok(None);
        }
        let Some(order) = start::decode(&self.order) else { return Ok(None) };
        let Some(mut pipes) = Pipes::new(order.stdin) else { return Ok(None) };
        let (started, told, log) = match start(&order, &mut pipes, confine) {
            Ok(()) => {
                let running = pipes.ours;
                drop(pipes.theirs);
                let (told, log) = self.speak(notes, &running);
                (Ok(running), told, log)
            }
            Err(why) => (Err(why), None, None),
        };
        // The program has begun: a guest that cannot say which one is better ended.
        let (program, restart, health) = whole(&order).context("the order that came with the machine")?;
        Ok(Some(Begun { program, restart, health, started, told, log: log.into_iter().collect() }))
    }

    /// Reads what a server says first to an agent of which it knows nothing; none where that is not all that it said.
    fn hear_hello(&mut self) -> Option<Remaining> {
        let Opened { device, received } = &mut self.port;
        let give_up = Instant::now() + HELLO_MAX;
        loop {
            if let Some(heard) = heard(received, &self.preamble) {
                return heard;
            }
            let mut polled = [PollFd::new(device, PollFlags::IN)];
            poll(&mut polled, Some(&timespec(give_up.saturating_duration_since(Instant::now())))).ok()?;
            let mut bytes = [0; 1024];
            // Where nobody is at the other end, or nothing came in time, this is empty or an error.
            let count = rustix::io::read(&*device, &mut bytes).ok().filter(|count| *count > 0)?;
            received.extend_from_slice(&bytes[..count]);
        }
    }

    /// Greets the server and sends it the program's first words: what it was told, and what the program said.
    fn speak(&self, notes: &[String], running: &Running) -> (Option<Told>, Option<LogEntry>) {
        let status = Status { phase: Phase::Running, starts: 1, notes: notes.to_vec(), ..Status::waiting() };
        if !self.send(self.preamble.to_vec(), &welcome(&status)) {
            return (None, None);
        }
        let Some(log) = first_words(&self.port, running) else {
            return (Some(Told { status, log_seq: 0 }), None);
        };
        let log_seq = u64::from(self.send(Vec::new(), &Frame::Log(log.clone())));
        (Some(Told { status, log_seq }), Some(log))
    }

    /// Sends a frame behind `bytes`; the port takes all of so little at once, or nothing.
    fn send(&self, mut bytes: Vec<u8>, frame: &Frame) -> bool {
        frame.encode(&mut bytes);
        rustix::io::write(&self.port.device, &bytes).is_ok()
    }
}

/// None where more has to come; none inside where it is something else than a first hello.
fn heard(bytes: &[u8], preamble: &[u8; PREAMBLE_BYTES]) -> Option<Option<Remaining>> {
    let (said, frames) = bytes.split_at_checked(PREAMBLE_BYTES)?;
    if said != preamble {
        return Some(None);
    }
    match Frame::decode(frames) {
        Ok(None) => None,
        Ok(Some((Frame::Control(json), length))) if length == frames.len() => Some(first_hello(&json)),
        _ => Some(None),
    }
}

fn first_hello(json: &[u8]) -> Option<Remaining> {
    let lease = std::str::from_utf8(json).ok()?.strip_prefix(HELLO)?.strip_suffix("}}")?;
    let (until, grace) = lease.split_once(HELLO_GRACE)?;
    let until_deadline_ms = if until == "null" { None } else { Some(until.parse().ok()?) };
    Some(Remaining { until_deadline_ms, grace_ms: grace.parse().ok()? })
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

fn welcome(status: &Status) -> Frame {
    if status.notes.is_empty() {
        return Frame::Control(WELCOME.into());
    }
    let (version, agent) = (AGENT_PROTOCOL_VERSION, env!("CARGO_PKG_VERSION").to_owned());
    let welcome = FromAgent::Welcome { version, agent, status: status.clone() };
    Frame::Control(serde_json::to_vec(&welcome).expect("a message holds nothing that JSON cannot say"))
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
    use calve_wire::frame::Token;

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
        let heard = |bytes: &[u8]| heard(bytes, &token.preamble());
        let hello = |version, log_seq, remaining| ToAgent::Hello { version, log_seq, remaining };
        let first = said(&[hello(AGENT_PROTOCOL_VERSION, 0, remaining)]);
        assert_eq!(heard(&first), Some(Some(remaining)));
        for length in 0..first.len() {
            assert_eq!(heard(&first[..length]), None, "{length}");
        }
        let endless = Remaining { until_deadline_ms: None, grace_ms: u64::MAX };
        assert_eq!(heard(&said(&[hello(AGENT_PROTOCOL_VERSION, 0, endless)])), Some(Some(endless)));
        for other in [
            said(&[hello(AGENT_PROTOCOL_VERSION, 1, remaining)]),
            said(&[hello(AGENT_PROTOCOL_VERSION + 1, 0, remaining)]),
            said(&[hello(AGENT_PROTOCOL_VERSION, 0, remaining), ToAgent::Stop { grace_ms: 0 }]),
            said(&[ToAgent::PowerOff]),
            vec![0; 200],
        ] {
            assert_eq!(heard(&other), Some(None));
        }
    }

    #[test]
    fn the_short_welcome_is_the_one_that_the_protocol_has() {
        let status = Status { phase: Phase::Running, starts: 1, ..Status::waiting() };
        let noted = Status { notes: vec!["n".into()], ..status.clone() };
        for status in [status, noted] {
            let Frame::Control(json) = welcome(&status) else { panic!("a message") };
            let (version, agent) = (AGENT_PROTOCOL_VERSION, env!("CARGO_PKG_VERSION").to_owned());
            let meant = FromAgent::Welcome { version, agent, status };
            assert_eq!(serde_json::from_slice::<FromAgent>(&json).expect("a message"), meant);
        }
    }
}
