//! A provider's token: from the environment, or from a file that nobody else can read.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most bytes of a token's file; DigitalOcean's tokens have 71 characters.
const TOKEN_FILE_MAX_BYTES: u64 = 4096;

/// A token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(String);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Why there are no credentials. Shows no part of a token.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Neither variable is set.
    #[error(
        "no credentials for {provider}: set {variable}, or {variable}_FILE to a file that holds the token"
    )]
    Missing {
        /// The provider.
        provider: &'static str,
        /// The variable.
        variable: &'static str,
    },
    /// What is there is no token.
    #[error("{place} holds no token: one word of printable characters is expected")]
    NoToken {
        /// The variable or file.
        place: String,
    },
    /// The file cannot be read.
    #[error("{}: the token cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else may read or write the file.
    #[error("{}: others may read or change this file (mode {mode:03o}, owner {owner}); run `chmod 600` on it as its owner", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The user who owns it.
        owner: u32,
    },
}

impl Credentials {
    /// From `variable`, else from the file that `<variable>_FILE` names; `variables` is the environment.
    pub fn find(
        provider: &'static str,
        variable: &'static str,
        variables: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CredentialsError> {
        let set = |name: &str| variables(name).filter(|value| !value.is_empty());
        if let Some(text) = set(variable) {
            return Self::parse(&text, variable.to_owned());
        }
        let file = set(&format!("{variable}_FILE"));
        Self::read(Path::new(&file.ok_or(CredentialsError::Missing { provider, variable })?))
    }

    /// From a file that belongs to this user or root and that nobody else may read.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        use std::io::Read;
        let unreadable = |source| CredentialsError::Unreadable { path: path.to_owned(), source };
        // Checked as opened: the name may come to mean another file.
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let (mode, owner) = (metadata.mode() & 0o777, metadata.uid());
        if mode & 0o077 != 0 || (owner != 0 && owner != rustix::process::geteuid().as_raw()) {
            return Err(CredentialsError::Exposed { path: path.to_owned(), mode, owner });
        }
        let mut text = String::new();
        file.take(TOKEN_FILE_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text, path.display().to_string())
    }

    fn parse(text: &str, place: String) -> Result<Self, CredentialsError> {
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CredentialsError::NoToken { place });
        }
        Ok(Self(token.to_owned()))
    }

    /// What is left of it after `prefix`, where it begins with that, provided that it has the form of a token.
    pub(crate) fn shaped(self, prefix: &str, is_token: impl Fn(&str) -> bool) -> Option<Self> {
        let token = self.0.strip_prefix(prefix).unwrap_or(&self.0);
        is_token(token).then(|| Self(token.to_owned()))
    }

    /// The part before a separator, which is no secret where a token has such a part.
    pub(crate) fn before(&self, separator: char) -> &str {
        self.0.split_once(separator).map_or("", |(name, _)| name)
    }

    /// As the value of an `Authorization` header after `scheme`, marked as a secret.
    pub(crate) fn authorization(&self, scheme: &str) -> reqwest::header::HeaderValue {
        let value = reqwest::header::HeaderValue::from_str(&format!("{scheme}{}", self.0));
        let mut value = value.expect("a token is printable");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn find(variables: &[(&str, &str)]) -> Result<Credentials, String> {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Credentials::find("digitalocean", "DIGITALOCEAN_TOKEN", get).map_err(|error| error.to_string())
    }

    #[test]
    fn the_variable_wins_and_errors_never_show_the_token() {
        let found =
            find(&[("DIGITALOCEAN_TOKEN", " secret\n"), ("DIGITALOCEAN_TOKEN_FILE", "/none")]).unwrap();
        assert_eq!(found, Credentials("secret".to_owned()));
        assert_eq!(format!("{found:?}"), "Credentials(…)");
        assert!(find(&[]).unwrap_err().contains("set DIGITALOCEAN_TOKEN"));
        let bad = find(&[("DIGITALOCEAN_TOKEN", "two secrets")]).unwrap_err();
        assert!(bad.contains("DIGITALOCEAN_TOKEN") && !bad.contains("secrets"), "{bad}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let name = file.to_str().unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o602, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = find(&[("DIGITALOCEAN_TOKEN_FILE", name)]);
            assert_eq!(found.is_ok(), good, "{mode:o}: {found:?}");
            assert!(found.err().is_none_or(|error| error.contains("chmod 600") && !error.contains("secret")));
        }
        assert!(find(&[("DIGITALOCEAN_TOKEN_FILE", "/nowhere/x")]).unwrap_err().contains("/nowhere/x"));
    }
}
