//! Which host: `[USER@]HOST[:PORT]`, as in `ssh://root@pi.example:2222`.

use std::fmt;
use std::str::FromStr;

/// Most bytes of a target: a host name has at most 253 (RFC 1035), a user name 32.
const TARGET_MAX_BYTES: usize = 320;

/// A host and how it is reached; the rest is said by the user's configuration of SSH.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The user there; the configuration's where none is said.
    pub user: Option<String>,
    /// A host name, an address, or a name of the configuration.
    pub host: String,
    /// The port; the configuration's where none is said.
    pub port: Option<u16>,
}

/// A text that names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no host: {why}; it is written as ssh://[USER@]HOST[:PORT]")]
pub struct TargetError {
    text: String,
    why: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let bad = |why| TargetError { text: text.to_owned(), why };
        if text.len() > TARGET_MAX_BYTES {
            return Err(bad("it is too long"));
        }
        let text = text.strip_prefix("ssh://").unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        // An IPv6 address stands in brackets, as in every URL.
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => {
                (host, Some(port.strip_prefix(':').ok_or_else(|| bad("a port comes after a colon"))?))
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        // What begins with a dash would be an option of `ssh`; what a shell or its configuration could take apart is no name.
        let plain = |name: &str, more: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !plain(host, ".-_:%") {
            return Err(bad("the host's name is missing or not plain"));
        }
        if user.is_some_and(|user| !plain(user, ".-_")) {
            return Err(bad("the user's name is not plain"));
        }
        let port = port
            .map(|port| port.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("the port is none")));
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port: port.transpose()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Target {
    /// The arguments of `ssh` that name it.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = &self.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        arguments.extend(["--".to_owned(), self.host.clone()]);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_written_alike() {
        for text in ["ssh://pi", "ssh://root@pi.example:2222", "ssh://a.b@[fe80::1%eth0]:22", "ssh://[::1]"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("root@pi".parse::<Target>().unwrap().to_string(), "ssh://root@pi");
        for bad in [
            "",
            "ssh://",
            "-oProxyCommand=x",
            "a@-x",
            "-x@a",
            "a b",
            "a;b",
            "a:0",
            "a:x",
            "a:65536",
            "[::1]2",
            "$(x)@a",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
