//! The user's own `nix`: its talk goes to our standard error, its answer comes to us.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use calve_nix::StorePath;

use crate::failure::{Failure, Outcome};

/// Turns on what flake references need, for users who have not.
const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command flakes"];

/// Whether a program's messages are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// The user sees them: progress and errors of a build.
    Shown,
    /// Its failure is an answer too.
    Hidden,
}

/// Runs `nix` with the features on; gives its standard output.
pub fn nix<S: AsRef<OsStr>>(args: &[S], talk: Talk) -> Outcome<Vec<u8>> {
    let mut command = Command::new("nix");
    command.args(FEATURES).args(args);
    output(command, "nix", talk)
}

/// Runs one of the older programs, such as `nix-build`.
pub fn classic<S: AsRef<OsStr>>(program: &str, args: &[S], talk: Talk) -> Outcome<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(args);
    output(command, program, talk)
}

fn output(mut command: Command, program: &str, talk: Talk) -> Outcome<Vec<u8>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(if talk == Talk::Shown { Stdio::inherit() } else { Stdio::null() });
    let output = command.spawn().and_then(std::process::Child::wait_with_output).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Failure::failed(format!("this needs Nix, and there is no {program} on this host"))
                .hint("install Nix (https://nixos.org/download), or give a store path or a static program")
        } else {
            Failure::failed(format!("{program} cannot be started")).caused_by(error)
        }
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let failure = Failure::failed(format!("{program} failed ({})", output.status));
    Err(if talk == Talk::Shown { failure.hint("its own messages are above") } else { failure })
}

/// The one store path that a build printed.
pub fn one_path(printed: &[u8], what: &str) -> Outcome<StorePath> {
    let text = String::from_utf8_lossy(printed);
    let mut paths = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = paths.next().ok_or_else(|| Failure::failed(format!("{what} gives no store path")))?;
    let more = paths.count();
    if more > 0 {
        return Err(Failure::usage(format!("{what} gives {} store paths, and one is needed", more + 1))
            .hint("name one: an attribute with -A, or behind the # of a flake reference"));
    }
    first.parse().map_err(|error| {
        Failure::failed(format!("{what} gives {first}, which is no store path")).caused_by(error)
    })
}

/// The text that `nix eval --raw` or `nix-instantiate --eval --json` printed; none where it is empty or null.
pub fn optional_text(printed: Outcome<Vec<u8>>) -> Option<String> {
    let text = String::from_utf8(printed.ok()?).ok()?;
    let text = text.trim().trim_matches('"').to_owned();
    (!text.is_empty() && text != "null").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_gives_one_store_path() {
        let path = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-x";
        assert_eq!(one_path(format!("{path}\n").as_bytes(), "x").unwrap().to_string(), path);
        assert!(one_path(b"", "x").unwrap_err().sentence.contains("no store path"));
        assert!(
            one_path(format!("{path}\n{path}\n").as_bytes(), "x")
                .unwrap_err()
                .sentence
                .contains("2 store paths")
        );
    }

    #[test]
    fn a_host_without_nix_is_told_what_else_can_be_run() {
        let failure = classic("no-such-nix-build", &["x"], Talk::Shown).unwrap_err();
        assert_eq!(failure.sentence, "this needs Nix, and there is no no-such-nix-build on this host");
        assert!(failure.hint.unwrap().contains("static program"));
    }
}
