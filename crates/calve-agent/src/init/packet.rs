//! What the agent and init say to each other: one JSON document a packet, with descriptors.
//!
//! ```text
//!  first byte 0: JSON follows │ first byte 1: the JSON is in the memfd that comes as the last descriptor
//! ```
//! A packet must fit the socket's send buffer, an environment of a megabyte does not; hence the second form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use calve_wire::agent::WindowSize;
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Most bytes of JSON inside of a packet: far below the smallest send buffer (`net.core.wmem_default`, 212992).
const INLINE_MAX_BYTES: usize = 32 * 1024;
/// Most bytes of JSON in a memfd: several times what execve(2) takes.
const BODY_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Most descriptors of one packet: three standard ones and a memfd.
const DESCRIPTORS_MAX: usize = 4;

/// What the agent asks of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a process. With the packet come its standard input, output and error; none of them with a terminal.
    Spawn {
        /// The agent's number for it.
        id: u64,
        /// What it does.
        work: Work,
        /// The size of its terminal, where it gets one.
        tty: Option<WindowSize>,
        /// Whether the rest of its group dies with it.
        sweep_group: bool,
    },
    /// Send a signal to the process's group; nothing where it has ended.
    Signal {
        /// The agent's number for it.
        id: u64,
        /// Signal number.
        signal: i32,
    },
    /// Kill everything in the machine; answered by [`Report::Empty`] once nothing is left.
    KillAll,
    /// Make a TCP socket in the machine's network.
    Socket {
        /// The agent's number for it.
        id: u64,
    },
}

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Become a program.
    Execute {
        /// Path or bare name, and the arguments.
        argv: Vec<String>,
        /// What the program is told as its own name, where that is not how it is found.
        name: Option<String>,
        /// The whole environment.
        env: BTreeMap<String, String>,
        /// Working directory; `/` where none is said.
        cwd: Option<String>,
    },
    /// Write a tar archive of the path to standard output.
    ReadTar {
        /// Absolute path.
        path: String,
    },
    /// Unpack a tar archive from standard input into the directory.
    WriteTar {
        /// Absolute path.
        path: String,
    },
    /// Take store paths from standard input into the store ([`calve_wire::seed`]), after saying on standard output which are
    /// there.
    Seed {
        /// Absolute path.
        path: String,
    },
    /// Copy a tree, writable, into a directory, which is made where it is missing.
    CopyTree {
        /// What to copy.
        from: String,
        /// Where to.
        to: String,
    },
}

/// What init reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Init is at work; its first packet.
    Ready,
    /// The process runs. With a terminal, its master comes with the packet.
    Spawned {
        /// The agent's number.
        id: u64,
    },
    /// There is no process.
    NotSpawned {
        /// The agent's number.
        id: u64,
        /// Why.
        why: NotStarted,
    },
    /// The process has ended.
    Exited {
        /// The agent's number.
        id: u64,
        /// How.
        end: End,
    },
    /// The socket comes with the packet.
    Socket {
        /// The agent's number.
        id: u64,
    },
    /// There is no socket.
    NoSocket {
        /// The agent's number.
        id: u64,
        /// Why, for people.
        message: String,
    },
    /// Nothing is left alive.
    Empty,
}

/// Why something was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStarted {
    /// One sentence for people.
    pub message: String,
    /// The code with which a shell says so ([`NOT_FOUND_CODE`], [`NOT_STARTED_CODE`]).
    pub code: i32,
}

/// A shell's exit code for a program or path that does not exist (POSIX, 2.8.2 of the shell's language).
pub const NOT_FOUND_CODE: i32 = 127;
/// A shell's exit code for a program that exists and cannot be executed.
pub const NOT_STARTED_CODE: i32 = 126;

impl From<String> for NotStarted {
    fn from(message: String) -> Self {
        Self { message, code: NOT_STARTED_CODE }
    }
}

impl From<&str> for NotStarted {
    fn from(message: &str) -> Self {
        Self::from(message.to_owned())
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Two connected ends that keep packets apart; both are closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A packet ready to be sent.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// The packet of a message and its descriptors.
    pub fn new(message: &impl Serialize, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut bytes = vec![0];
        serde_json::to_writer(&mut bytes, message)?;
        if bytes.len() > INLINE_MAX_BYTES {
            let mut body = File::from(rustix::fs::memfd_create("request", MemfdFlags::CLOEXEC)?);
            body.write_all(&bytes[1..])?;
            descriptors.push(body.into());
            bytes = vec![1];
        }
        Ok(Self { bytes, descriptors })
    }

    /// Sends it; waits, or answers `WouldBlock`, as the socket is set.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(&self.bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Receives a message and its descriptors; none where the other end is closed.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; INLINE_MAX_BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let length = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let message = match bytes[..length].split_first() {
        None => return Ok(None),
        Some((0, json)) => serde_json::from_slice(json)?,
        Some(_) => {
            let body = descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
            serde_json::from_slice(&read_body(body)?)?
        }
    };
    Ok(Some((message, descriptors)))
}

fn read_body(body: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(body);
    file.rewind()?;
    let mut json = Vec::new();
    file.take(BODY_MAX_BYTES).read_to_end(&mut json)?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_size_cross_with_their_descriptors() {
        let (here, there) = pair().expect("a socket pair");
        for size in [1, INLINE_MAX_BYTES, 1 << 20] {
            let request = Request::Spawn {
                id: 7,
                work: Work::ReadTar { path: "x".repeat(size) },
                tty: None,
                sweep_group: false,
            };
            let null = File::open("/dev/null").expect("it is everywhere");
            Packet::new(&request, vec![null.into()])
                .and_then(|packet| packet.send(here.as_fd()))
                .expect("sent");
            let (received, descriptors) = receive::<Request>(there.as_fd()).expect("received").expect("open");
            assert_eq!(received, request);
            assert_eq!(descriptors.len(), 1);
        }
        drop(here);
        assert!(receive::<Request>(there.as_fd()).expect("received").is_none());
    }
}
