//! Hosts that are there already, borrowed over SSH with the system's own OpenSSH: whatever the user's configuration, keys,
//! agent and jump hosts allow, works here as well.
//!
//! ```text
//!  Client::open ─▶ pin: which key the host must show ─▶ ssh (one connection, ControlMaster) ─▶ Host::run, many sessions
//! ```
//! One connection a host is held open by a session whose standard input this process holds: it ends with this process,
//! however that ends. A host is trusted by a key that calve has pinned at the first use: one that the user has named, or that
//! the user's `known_hosts` knows; nothing is ever trusted because it came first.

mod client;
mod key;
mod pin;
mod said;
mod target;

pub use client::{Client, Host, Session, Settings};
pub use key::HostKey;
pub use target::{Target, TargetError};

/// Its name as users type it.
pub const NAME: &str = "ssh";
