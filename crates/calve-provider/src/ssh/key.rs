//! Public keys of hosts.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::digest::{SHA256, digest};

/// What a user says of a host's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKey {
    /// The key: its type and its bytes in base64, as in `known_hosts` and in `/etc/ssh/ssh_host_*_key.pub`.
    Key(String),
    /// What `ssh-keygen -l` shows of it.
    Fingerprint(String),
}

/// A text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host key is written as `TYPE BASE64`, as in known_hosts, or as `SHA256:FINGERPRINT`, as ssh-keygen -l shows it"
)]
pub struct HostKeyError;

impl FromStr for HostKey {
    type Err = HostKeyError;
    fn from_str(text: &str) -> Result<Self, HostKeyError> {
        if let Some(digits) = text.strip_prefix("SHA256:") {
            let bytes = STANDARD_NO_PAD.decode(digits.trim_end_matches('=')).map_err(|_| HostKeyError)?;
            return match bytes.len() {
                32 => Ok(Self::Fingerprint(format!("SHA256:{}", STANDARD_NO_PAD.encode(bytes)))),
                _ => Err(HostKeyError),
            };
        }
        // A comment may follow.
        let mut words = text.split_ascii_whitespace();
        let (kind, bytes) = words.next().zip(words.next()).ok_or(HostKeyError)?;
        let decoded = STANDARD.decode(bytes).map_err(|_| HostKeyError)?;
        // The bytes begin with the type's name behind its length (RFC 4253, 6.6).
        let named = decoded.get(4..4 + kind.len()).is_some_and(|name| name == kind.as_bytes());
        if !named || decoded[..4] != u32::try_from(kind.len()).map_err(|_| HostKeyError)?.to_be_bytes() {
            return Err(HostKeyError);
        }
        Ok(Self::Key(format!("{kind} {bytes}")))
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Key(text) | Self::Fingerprint(text)) = self;
        f.write_str(text)
    }
}

/// The fingerprint of a key that is written as `TYPE BASE64`.
pub(super) fn fingerprint(key: &str) -> Option<String> {
    let bytes = STANDARD.decode(key.split_ascii_whitespace().nth(1)?).ok()?;
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, &bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn keys_and_fingerprints_are_told_apart_and_nonsense_is_neither() {
        assert_eq!(format!("{KEY} root@pi").parse(), Ok(HostKey::Key(KEY.to_owned())));
        let shown = fingerprint(KEY).unwrap();
        assert_eq!(shown.parse(), Ok(HostKey::Fingerprint(shown.clone())));
        let swapped = KEY.replace("ssh-ed25519", "ssh-rsa");
        for bad in
            ["", "SHA256:", "SHA256:abc", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-ed25519 AAAA", &swapped]
        {
            assert_eq!(bad.parse::<HostKey>(), Err(HostKeyError), "{bad}");
        }
    }
}
