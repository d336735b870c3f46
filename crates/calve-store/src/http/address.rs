//! Where a cache is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::http::uri::Authority;

/// Where a cache is: `http://host[:port][/prefix]`, `https://…`, or
/// `unix:/path/of/its.sock[:/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    pub(crate) at: At,
    /// Empty, or like `/cache` without a slash at its end.
    pub(crate) prefix: String,
}

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum At {
    /// A host.
    Host { tls: bool, name: String, port: u16 },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Names of this host.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Why a text is no address of a cache; the message is a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It has another form.
    #[error(
        "{0:?} is no address of a cache, which looks like https://cache.example.org or unix:/run/cache.sock"
    )]
    Form(String),
    /// It holds a password, which would end up in logs.
    #[error("the address of a cache holds no user and no password; give the token beside it")]
    Secret,
}

impl Address {
    /// What stands in the `Host` header.
    pub(crate) fn host_header(&self) -> String {
        match &self.at {
            At::Unix(_) => "calve".to_owned(),
            At::Host { tls, name, port } if *port == default_port(*tls) => name.clone(),
            At::Host { name, port, .. } => format!("{name}:{port}"),
        }
    }

    /// Whether a secret sent there can be read on the way.
    pub fn is_open_to_readers(&self) -> bool {
        !matches!(self.at, At::Host { tls: true, .. }) && !self.is_local()
    }

    /// Whether it is one of this host, without TLS; what listens there may pass everything on.
    pub fn is_local(&self) -> bool {
        match &self.at {
            At::Unix(_) => true,
            At::Host { tls, name, .. } => !tls && LOOPBACK.contains(&name.as_str()),
        }
    }
}

/// A text that was meant as an address, without the user and the password that may stand before its host: for messages.
pub fn redacted(text: &str) -> String {
    let Some((secret, host)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = secret.find("://").map_or(0, |at| at + "://".len());
    // A file's name may hold a `@`, a secret follows a scheme or a user.
    if scheme == 0 && !secret.contains(':') {
        return text.to_owned();
    }
    format!("{}…@{host}", &secret[..scheme])
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn in_prefix(c: u8) -> bool {
    c.is_ascii_graphic() && c != b'?' && c != b'#'
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Form(redacted(text));
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(wrong());
            }
            // One slash is as good as many, which would be read as `unix://` when they are shown.
            let path = path.trim_start_matches('/');
            let path = format!("/{path}");
            let (path, prefix) = path.split_at(path.find(":/").unwrap_or(path.len()));
            let prefix = prefix.trim_start_matches(':').trim_end_matches('/');
            if !prefix.bytes().all(in_prefix) {
                return Err(wrong());
            }
            return Ok(Self { at: At::Unix(path.into()), prefix: prefix.to_owned() });
        }
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            (None, None) => return Err(wrong()),
        };
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(AddressError::Secret);
        }
        let parsed: Authority = authority.parse().map_err(|_| wrong())?;
        let port = match authority[parsed.host().len()..].strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None => default_port(tls),
        };
        if parsed.host().is_empty() || !prefix.bytes().all(in_prefix) {
            return Err(wrong());
        }
        let at = At::Host { tls, name: parsed.host().to_ascii_lowercase(), port };
        Ok(Self { at, prefix: prefix.trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Unix(path) if self.prefix.is_empty() => write!(f, "unix:{}", path.display()),
            At::Unix(path) => write!(f, "unix:{}:{}", path.display(), self.prefix),
            At::Host { tls, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}{}", self.host_header(), self.prefix)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_an_address_is_never_repeated() {
        for (text, shown) in [
            ("http://user:SECRET@host/a", "http://…@host/a"),
            ("ftp://SECRET@host", "ftp://…@host"),
            ("user:SECRET@host", "…@host"),
            ("https://u:SEC@RET@host", "https://…@host"),
            ("./dir@home", "./dir@home"),
            ("https://host:1", "https://host:1"),
        ] {
            assert_eq!(redacted(text), shown);
            assert!(text.parse::<Address>().err().is_none_or(|error| !error.to_string().contains("SEC")));
        }
    }

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for (text, shown) in [
            ("http://h", "http://h"),
            ("http://H:8080/", "http://h:8080"),
            ("https://h:443/a/b/", "https://h/a/b"),
            ("http://[::1]:7", "http://[::1]:7"),
            ("unix:/run/c.sock", "unix:/run/c.sock"),
            ("unix:///run/c.sock", "unix:/run/c.sock"),
            ("unix:////run/c.sock", "unix:/run/c.sock"),
            ("unix:/run/c.sock:/a/b/", "unix:/run/c.sock:/a/b"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
        for bad in [
            "",
            "h",
            "ftp://h",
            "http://",
            "http://a b",
            "http://h:99999",
            "http://h/?x",
            "unix:x",
            "unix:/s:/a b",
        ] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::Form(_))), "{bad}");
        }
        assert_eq!("http://u:p@h".parse::<Address>(), Err(AddressError::Secret));
    }

    #[test]
    fn a_secret_is_safe_on_this_host_and_behind_tls() {
        let open = |text: &str| text.parse::<Address>().unwrap().is_open_to_readers();
        assert!(open("http://h"));
        assert!(!open("https://h") && !open("http://127.0.0.1:7") && !open("unix:/s"));
    }

    #[test]
    fn addresses_of_this_host_are_known_and_what_is_behind_tls_is_not_left_aside() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(local("http://localhost") && local("http://127.0.0.1:7/cache") && local("unix:/s"));
        assert!(!local("http://h") && !local("https://localhost") && !local("http://127.0.0.2"));
    }
}
