//! The key by which a host is known: pinned at the first use, from what the user has said or already knows.
//!
//! ```text
//!  pinned file? ──────────────────────────────────────────────▶ it counts, and nothing else
//!   └─ none ─▶ --host-key? ─▶ the key, or the shown key with that fingerprint ─┬─▶ pinned once a connection has come about
//!               └─ none ─▶ known_hosts of the user and of this machine ────────┘
//!                           └─ none ─▶ refused, with the fingerprint that the host shows
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::client::Ssh;
use super::key::{HostKey, fingerprint};
use super::{NAME, Target};
use crate::{ErrorKind, ProviderError};

/// Most bytes of a file of known hosts that is looked at.
const LINES_MAX_BYTES: usize = 1 << 20;

/// A file of the form `known_hosts` that holds the keys of one host and of nobody else.
pub(super) struct Pin {
    /// What `ssh` is to go by.
    pub file: PathBuf,
    /// Where it goes once a connection has come about.
    stays: Option<PathBuf>,
}

impl Pin {
    /// That of the host, or a candidate.
    pub async fn find(ssh: &Ssh, target: &Target, said: Option<&HostKey>) -> Result<Self, ProviderError> {
        let configured = ssh.configured(target).await?;
        let file = ssh.pins_dir().join(file_name(&configured.name));
        let pinned = fs::read_to_string(&file).ok();
        match (pinned, said) {
            (Some(_), None) => return Ok(Self { file, stays: None }),
            (Some(pinned), Some(said)) if agrees(&pinned, said) => return Ok(Self { file, stays: None }),
            _ => {}
        }
        let lines = match said {
            Some(HostKey::Key(key)) => format!("{} {key}\n", configured.name),
            Some(HostKey::Fingerprint(wanted)) => {
                let shown = ssh.shown_key(target).await?;
                let shows = fingerprint(&shown).unwrap_or_default();
                if shows != *wanted {
                    let message = format!("{target} shows the host key {shows}, and {wanted} was asked for");
                    return Err(ProviderError::new(NAME, ErrorKind::Credentials, message));
                }
                format!("{} {shown}\n", configured.name)
            }
            None => {
                let mut lines = String::new();
                for file in &configured.known_hosts {
                    lines += &ssh.known(&configured.name, file).await;
                    lines.truncate(LINES_MAX_BYTES);
                }
                lines
            }
        };
        if lines.is_empty() {
            let shown = ssh.shown_key(target).await?;
            let shows = fingerprint(&shown).unwrap_or_default();
            let message = format!(
                "the host key of {target} is not known: it shows {shows}. Compare it there (ssh-keygen -lf \
                 /etc/ssh/ssh_host_ed25519_key.pub), then say `--host-key {shows}`, or log in once with ssh"
            );
            return Err(ProviderError::new(NAME, ErrorKind::Credentials, message));
        }
        let name = format!("{}.new-{}", file_name(&configured.name), std::process::id());
        let candidate = ssh.pins_dir().join(name);
        let unwritable = |error: io::Error| {
            let message = format!("the host key cannot be kept in {}: {error}", file.display());
            ProviderError::new(NAME, ErrorKind::Failed, message)
        };
        write(&candidate, &lines).map_err(unwritable)?;
        Ok(Self { file: candidate, stays: Some(file) })
    }

    /// The host has shown a key of the file: from now on it must.
    pub fn keep(&mut self) -> io::Result<()> {
        let Some(stays) = self.stays.take() else { return Ok(()) };
        fs::rename(&self.file, &stays)?;
        self.file = stays;
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.stays.is_some() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn write(file: &Path, lines: &str) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    open.write_all(lines.as_bytes())?;
    open.sync_all()
}

/// Whether what is pinned is what the user says.
fn agrees(pinned: &str, said: &HostKey) -> bool {
    let mut keys = pinned.lines().filter_map(|line| line.split_once(' ')).map(|(_, key)| key.trim());
    match said {
        HostKey::Key(key) => keys.any(|pinned| pinned == key),
        HostKey::Fingerprint(wanted) => keys.any(|pinned| fingerprint(pinned).as_ref() == Some(wanted)),
    }
}

/// A file's name of a host's; two hosts never share one.
fn file_name(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let short: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{short}", plain.trim_start_matches('.'))
}

/// The lines of a file of known hosts that `ssh-keygen -F` has found, under the plain name.
pub(super) fn renamed(found: &str, name: &str) -> String {
    let line = |line: &str| {
        let (marker, rest) = match line.split_once(' ') {
            Some((marker, rest)) if marker.starts_with('@') => (format!("{marker} "), rest),
            _ => (String::new(), line),
        };
        let (_, key) = rest.trim().split_once(' ')?;
        Some(format!("{marker}{name} {key}\n"))
    };
    found.lines().filter(|text| !text.starts_with('#') && !text.is_empty()).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hosts_are_taken_under_the_plain_name() {
        let found =
            "# Host pi found: line 3\n|1|aa=|bb= ssh-ed25519 AAAA c\n@cert-authority *.x ssh-rsa BBBB\n\n";
        assert_eq!(
            renamed(found, "[pi]:2222"),
            "[pi]:2222 ssh-ed25519 AAAA c\n@cert-authority [pi]:2222 ssh-rsa BBBB\n"
        );
        assert_ne!(file_name("[a]:1"), file_name("_a__1"));
        assert!(!file_name("../x").contains('/') && !file_name("../x").starts_with('.'));
    }
}
