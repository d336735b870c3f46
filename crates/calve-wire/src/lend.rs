//! What a server and the agent on a borrowed host say to each other over SSH before there is a machine, and at its end.
//!
//! ```text
//!  server                                        `calve-agent lend` on the host
//!    LendOrder, one line ──────────────────────▶   take note of the machine
//!    ◀────────────────────────── Lent::Missing     store paths that are not there yet
//!    they, path by path ([`crate::seed`]) ─────▶   unpack and check, make the sandbox
//!    ◀──────────────────────────── Lent::Ready     from here on the machine's keeper looks after it
//! ```
//! Login shells say things of their own on standard output: what the agent says stands in lines that begin with
//! [`LENT_PREFIX`].

use serde::{Deserialize, Serialize};

use crate::agent::{SandboxFailure, SandboxSpec};

/// The version that this program writes and reads.
pub const LEND_VERSION: u32 = 1;
/// Begins each line of the agent.
pub const LENT_PREFIX: &str = "calve-lent ";
/// Most bytes of a line: a closure of 30,000 store paths with names of 100 bytes.
pub const LEND_LINE_MAX_BYTES: usize = 4 << 20;

/// What is wanted of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LendOrder {
    /// [`LEND_VERSION`] of the writer.
    pub version: u32,
    /// Which creation of the machine this is.
    pub attempt: u32,
    /// Who borrows, for people: user and host name of the server.
    pub holder: String,
    /// The machine. Where its store paths lie is the host's business, and by which clock its lease was written as well.
    pub spec: SandboxSpec,
}

/// What the agent on the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub enum Lent {
    /// These store paths are not there; they are expected, and the end behind them.
    Missing {
        /// Base names.
        paths: Vec<String>,
    },
    /// The machine is there and its agent listens.
    Ready,
    /// There is no machine, and nothing is left of it.
    Failed(SandboxFailure),
    /// What follows are the bytes of an agent: the machine's, or that of the host itself.
    Connected,
    /// No such machine is on the host, and nothing is left of it.
    Gone,
    /// The machines that are on the host.
    Machines {
        /// Each of them.
        machines: Vec<LentMachine>,
    },
}

/// A machine on a borrowed host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentMachine {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Which creation of it.
    pub attempt: u32,
    /// Who borrowed the host for it.
    pub holder: String,
    /// Its lease as it was when the host was borrowed; the machine's agent may have been told another since.
    pub until_unix_ms: Option<u64>,
}

impl Lent {
    /// As a line, with its end.
    pub fn to_line(&self) -> String {
        format!("{LENT_PREFIX}{}\n", serde_json::to_string(self).expect("plain data"))
    }

    /// What a line says; none where it is somebody else's.
    pub fn parse_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim_end().strip_prefix(LENT_PREFIX)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_others_are_nothing() {
        let said = Lent::Missing { paths: vec!["x".to_owned()] };
        assert_eq!(Lent::parse_line(&said.to_line()), Some(said));
        for other in ["", "Welcome to pi!", "calve-lent", "calve-lent {}", "calve-lent {\"said\":\"more\"}"] {
            assert_eq!(Lent::parse_line(other), None, "{other}");
        }
    }
}
