//! How a machine elsewhere becomes one that the server knows: what it is told when it is made, and what it says first.
//!
//! ```text
//!  user data ── one join token ──▶ agent makes its key ──▶ dials (TLS, certificate known by its fingerprint)
//!  agent   [`KNOCK_MAGIC`] │ u32 BE length │ JSON of [`Knock`]        key, signature over this very connection, join token
//!  server  u32 BE length │ JSON of [`KnockAnswer`]                     the link's token, or why not
//!  both    the agent protocol ([`crate::frame`]) with that token
//! ```
//! Every connection begins so. The first knock redeems the join token: from then on the machine is the key's, and the token
//! opens nothing to any other key. The same key may knock as often as it likes: an answer that was lost is asked for again.
//!
//! Whoever can read a machine's metadata can read its user data, every process in the machine among them: once the token is
//! redeemed, they open nothing.

use calve_core::MachineId;
use serde::{Deserialize, Serialize};

/// The version that this program writes and reads.
pub const USER_DATA_VERSION: u32 = 2;
/// The version of [`Knock`].
pub const KNOCK_VERSION: u32 = 1;
/// What a connection begins with whose agent shows a key, in place of the preamble of a link.
pub const KNOCK_MAGIC: [u8; 16] = *b"\x00\xffcalve-knock1\xff\x00";
/// Most bytes of a knock, and of its answer.
pub const KNOCK_MAX_BYTES: u32 = 4096;
/// Label of the keying material of the TLS connection that a knock signs (RFC 8446, 7.5): so it proves the key on this
/// connection and on no other.
pub const KNOCK_LABEL: &[u8] = b"EXPORTER-calve-knock";
/// Bytes of that keying material.
pub const KNOCK_EXPORT_BYTES: usize = 32;

/// What a knock signs with its key.
pub fn knock_statement(exported: &[u8; KNOCK_EXPORT_BYTES], machine: &str, join: Option<&str>) -> Vec<u8> {
    let mut statement = b"calve knock 1\0".to_vec();
    statement.extend_from_slice(exported);
    for text in [machine, join.unwrap_or_default()] {
        statement.push(0);
        statement.extend_from_slice(text.as_bytes());
    }
    statement
}

/// How an agent introduces itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// [`KNOCK_VERSION`].
    pub version: u32,
    /// The machine that it says to be.
    pub machine: String,
    /// The public half of its ed25519 key, 64 hexadecimal digits.
    pub key: String,
    /// Of [`knock_statement`] by that key, 128 hexadecimal digits.
    pub signature: String,
    /// The token of its user data.
    pub join: Option<String>,
}

/// It holds a token: it is not shown.
impl std::fmt::Debug for Knock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Knock({} with {})", self.machine, self.key)
    }
}

/// What the server says to a knock.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum KnockAnswer {
    /// The machine is this key's: the link goes on with this token.
    Welcome {
        /// 32 hexadecimal digits.
        token: String,
    },
    /// It is not.
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// For people.
        message: String,
    },
}

/// It holds a token: it is not shown.
impl std::fmt::Debug for KnockAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Welcome { .. } => write!(f, "Welcome"),
            Self::Refused { reason, message } => write!(f, "Refused({reason:?}, {message:?})"),
        }
    }
}

/// Why a knock is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The token was redeemed by another key.
    Used,
    /// The token was not redeemed in time.
    Expired,
    /// The token is of no machine here, of another one, or of an earlier attempt at this one; or there is no token and the
    /// machine is not this key's.
    Foreign,
    /// The knock is not what this server understands, or its signature is wrong.
    Broken,
    /// The server cannot say at the moment: the agent tries again.
    Later,
}

/// User data of a machine at a provider, as JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserData {
    /// [`USER_DATA_VERSION`] of the writer, under a name that tells this from other programs' user data.
    pub calve: u32,
    /// Its host name.
    pub name: String,
    /// Its id at the server; since version 2.
    #[serde(default, with = "crate::text::option", skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Where its agent dials, `host:port`.
    pub server: String,
    /// SHA-256 of the server's certificate in DER, in hexadecimal digits: no other server is trusted.
    pub fingerprint: String,
    /// Makes the machine the property of the first key that shows it, within minutes.
    /// Since version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// In place of the two, in version 1: by this the server knows the machine for its whole life, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When its lease ends; none where it has no end. Its clock is the provider's, so that this needs no server.
    pub deadline_unix_ms: Option<u64>,
    /// Time from the deadline to the end of the machine.
    pub grace_ms: u64,
}

/// It holds a token: it is not shown.
impl std::fmt::Debug for UserData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserData({} of {})", self.name, self.server)
    }
}

/// Why user data are none of ours.
#[derive(Debug, thiserror::Error)]
pub enum UserDataError {
    /// Not the JSON that calve writes.
    #[error("this is no user data of calve")]
    Form(#[from] serde_json::Error),
    /// From a newer server.
    #[error("user data of version {0} need a newer agent than this, which reads {USER_DATA_VERSION}")]
    Newer(u32),
}

impl UserData {
    /// As a provider takes it.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// What [`UserData::to_text`] gave.
    pub fn parse(text: &str) -> Result<Self, UserDataError> {
        #[derive(Deserialize)]
        struct Version {
            calve: u32,
        }
        let Version { calve } = serde_json::from_str(text)?;
        if calve > USER_DATA_VERSION {
            return Err(UserDataError::Newer(calve));
        }
        Ok(serde_json::from_str(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_others_are_refused() {
        let data = UserData {
            calve: USER_DATA_VERSION,
            name: "run-1".to_owned(),
            server: "calve.example.org:7077".to_owned(),
            fingerprint: "0a".repeat(32),
            machine: Some(MachineId::new(calve_core::Timestamp(1), 1)),
            join: Some("0123456700112233445566778899aabbccddeeff".to_owned()),
            token: None,
            deadline_unix_ms: Some(1_800_000_000_000),
            grace_ms: 10_000,
        };
        assert_eq!(UserData::parse(&data.to_text()).unwrap(), data);
        assert!(!format!("{data:?}").contains("00112233"));
        let newer = UserData { calve: USER_DATA_VERSION + 1, ..data }.to_text();
        let newer = UserData::parse(&newer).unwrap_err();
        assert!(newer.to_string().contains("newer agent"), "{newer}");
        assert!(UserData::parse("#cloud-config\n").is_err());
    }
}
