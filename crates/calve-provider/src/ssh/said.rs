//! What `ssh` says when it fails, as an error of ours.

use crate::{ErrorKind, ProviderError};

use super::{NAME, Target};

/// Most characters of its own words.
const WORDS_MAX_CHARS: usize = 300;

/// The error behind what it wrote to its standard error.
pub(super) fn error(target: &Target, stderr: &str) -> ProviderError {
    let has = |words: &str| stderr.contains(words);
    let line = line(stderr);
    let (kind, message) = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        let shown = stderr.split_ascii_whitespace().find(|word| word.starts_with("SHA256:"));
        let shown = shown.map(|key| key.trim_end_matches('.')).unwrap_or("another key");
        let message = format!(
            "the host key of {target} has changed: it shows {shown}, which is not the pinned one. Somebody may stand in \
             between; if the host was installed anew, say `--host-key {shown}` after comparing it there"
        );
        (ErrorKind::Credentials, message)
    } else if has("Host key verification failed") || has("host key is known for") {
        (ErrorKind::Credentials, format!("{target} shows a host key that is not known: {line}"))
    } else if has("Permission denied") || has("Too many authentication failures") {
        let message = format!(
            "{target} does not let us in: {line}. The server uses your keys, ssh-agent and ~/.ssh/config, but never asks for a \
             password: does `ssh -o BatchMode=yes` get in?"
        );
        (ErrorKind::Denied, message)
    } else if has("Could not resolve hostname") {
        (ErrorKind::Unreachable, format!("{target} has no address: {line}"))
    } else {
        (ErrorKind::Unreachable, format!("{target} cannot be reached: {line}"))
    };
    ProviderError::new(NAME, kind, message)
}

/// The line that tells most: the last, but for the ones that only say that the connection is over.
fn line(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let weak = |line: &&str| line.starts_with("kex_exchange") || line.starts_with("Connection closed");
    let told = lines.iter().rev().find(|line| !weak(line)).or(lines.last());
    let told = told.copied().unwrap_or("ssh ended without a word").trim_end_matches('.');
    told.chars().filter(|c| !c.is_control()).take(WORDS_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_one_sentence_of_its_kind() {
        let target: Target = "ssh://root@pi:2222".parse().unwrap();
        let changed = "@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nThe fingerprint for the ED25519 key sent by \
                       the remote host is\nSHA256:abc.\nHost key verification failed.";
        for (stderr, kind, words) in [
            (changed, ErrorKind::Credentials, "it shows SHA256:abc, which"),
            (
                "root@pi: Permission denied (publickey).\r\n",
                ErrorKind::Denied,
                "Permission denied (publickey).",
            ),
            (
                "ssh: connect to host pi port 2222: Connection refused",
                ErrorKind::Unreachable,
                "Connection refused",
            ),
            ("ssh: Could not resolve hostname pi: no", ErrorKind::Unreachable, "has no address"),
            ("", ErrorKind::Unreachable, "without a word"),
            (
                "kex_exchange_identification: read: reset\nConnection closed by 1",
                ErrorKind::Unreachable,
                "Connection closed",
            ),
        ] {
            let error = error(&target, stderr);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(words) && error.to_string().starts_with("ssh: "), "{error}");
        }
    }
}
