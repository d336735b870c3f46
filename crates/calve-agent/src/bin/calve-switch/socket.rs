//! The socket of the process that carries a switch out: the server's word comes through it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use calve_wire::system::HostAnswer;
use serde::{Deserialize, Serialize};

use crate::host::{Host, remove};
use crate::{begin, refused};

/// Longest wait for an answer: a confirmed system is made the one that boots, which runs programs.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Time that a local asker has to say what it wants.
const REQUEST_MAX: Duration = Duration::from_secs(2);

/// What is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// The server hears the host's agent again.
    Confirm {
        /// Which switch.
        id: String,
    },
    /// The former system is wanted back.
    Back {
        /// Which switch.
        id: String,
        /// Why.
        why: String,
    },
}

/// A path of any length.
fn with_path<T>(host: &Host, act: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let dir = std::fs::File::open(host.kept(""))?;
    act(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()).into())
}

/// Listens; whoever listened before has ended.
pub fn listen(host: &Host) -> io::Result<UnixListener> {
    remove(&host.kept("socket"))?;
    let listener = with_path(host, UnixListener::bind)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who asks, and what.
pub fn accept(listener: &UnixListener) -> Option<(UnixStream, Request)> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(REQUEST_MAX)).ok()?;
    stream.set_write_timeout(Some(REQUEST_MAX)).ok()?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    let request = serde_json::from_str(&line).ok()?;
    Some((stream, request))
}

/// Answers; who has gone needs none.
pub fn answer(mut stream: &UnixStream, answer: &HostAnswer) {
    let _ = serde_json::to_writer(&mut stream, answer);
    let _ = stream.write_all(b"\n");
}

/// Asks the process that carries the switch out; none where there is no such process, or it ended without an answer.
pub fn ask(host: &Host, request: &Request) -> anyhow::Result<Option<HostAnswer>> {
    let Ok(mut stream) = with_path(host, UnixStream::connect) else { return Ok(None) };
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = String::new();
    let asked = (|| -> io::Result<usize> {
        serde_json::to_writer(&mut stream, request)?;
        stream.write_all(b"\n")?;
        BufReader::new(&stream).read_line(&mut line)
    })();
    match asked {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(error).context("calve-switch does not answer")
        }
        // It ended while it was asked.
        Ok(0) | Err(_) => Ok(None),
        Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
    }
}

/// Gives the server's word; where nobody takes it, the record is told as it is.
pub fn confirm(host: &Host, id: &str) -> anyhow::Result<HostAnswer> {
    if let Some(answer) = ask(host, &Request::Confirm { id: id.to_owned() })? {
        return Ok(answer);
    }
    Ok(match begin::status(host)? {
        Some(switch) => HostAnswer::Done { switch },
        None => refused("the host knows of no switch"),
    })
}
