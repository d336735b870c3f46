//! What a guest has done before its agent was there: its program may be begun by then.

use std::os::fd::OwnedFd;

use calve_wire::agent::Status;
use calve_wire::frame::LogEntry;
use calve_wire::machine::{HealthCheck, Program, Restart};

use crate::init::packet::NotStarted;

/// A program that was begun when the server had said hello, in place of the server's order, which was known already.
pub struct Begun {
    /// As ordered.
    pub program: Program,
    /// As ordered.
    pub restart: Restart,
    /// As ordered.
    pub health: Option<HealthCheck>,
    /// The program, or why it does not run.
    pub started: Result<Running, NotStarted>,
    /// What the server was told; none where it was not greeted.
    pub told: Option<Told>,
    /// What the program has said so far; counted from 1.
    pub log: Vec<LogEntry>,
}

/// The program's process.
pub struct Running {
    /// Init's number for it.
    pub id: u64,
    /// Its process id.
    pub pid: i32,
    /// Its standard input, where that is not empty.
    pub input: Option<OwnedFd>,
    /// Its standard output and error.
    pub outputs: [OwnedFd; 2],
}

/// What the server was told.
pub struct Told {
    /// In the welcome.
    pub status: Status,
    /// The last log entry.
    pub log_seq: u64,
}
