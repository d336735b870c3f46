//! What a machine at a provider is told when it is made: its user data, which its agent reads from the provider's metadata
//! service.
//!
//! Whoever can read the machine's metadata can read this, every process in the machine among them: it opens nothing but the talk
//! with this machine's agent.

use serde::{Deserialize, Serialize};

/// The version that this program writes and reads.
pub const USER_DATA_VERSION: u32 = 1;

/// User data of a machine at a provider, as JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserData {
    /// [`USER_DATA_VERSION`] of the writer, under a name that tells this from other programs' user data.
    pub calve: u32,
    /// Its host name.
    pub name: String,
    /// Where its agent dials, `host:port`.
    pub server: String,
    /// SHA-256 of the server's certificate in DER, in hexadecimal digits: no other server is trusted.
    pub fingerprint: String,
    /// By this the server knows the machine: 32 hexadecimal digits.
    pub token: String,
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
            token: "00112233445566778899aabbccddeeff".to_owned(),
            deadline_unix_ms: Some(1_800_000_000_000),
            grace_ms: 10_000,
        };
        assert_eq!(UserData::parse(&data.to_text()).unwrap(), data);
        assert!(!format!("{data:?}").contains(&data.token));
        let newer = UserData { calve: 2, ..data }.to_text();
        let newer = UserData::parse(&newer).unwrap_err();
        assert!(newer.to_string().contains("newer agent"), "{newer}");
        assert!(UserData::parse("#cloud-config\n").is_err());
    }
}
