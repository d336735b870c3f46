//! The order of the server's [`ToAgent::Start`], given to a guest with its machine: a guest whose program is known need not
//! be told it word by word before the first line of its output. It is only the order in advance, not the word to go: the
//! agent acts on it when the server has said hello, which a server does to a machine that it has written down.
//!
//! ```text
//!  stdin │0│ argv count │0│ cwd │0│ program │0│ its own name │0│ arguments… each │0│ environment K=V… each │0│ │0│ JSON
//! ```
//! The first part is what `execve(2)` takes, as it takes it; the JSON is the whole message, for everything later.

use crate::agent::ToAgent;
use crate::machine::{HealthCheck, Program, Restart};

/// Name of the item by which QEMU hands it to the guest (QEMU `docs/specs/fw_cfg.rst`).
pub const START_ITEM: &str = "opt/calve/start";
/// The file of that item in the machine's run directory.
pub const START_FILE: &str = "start";
/// Word on the kernel's command line: the item is there.
pub const START_PARAMETER: &str = "calve.start=fw_cfg";
/// Longest order that is given in advance: it is read byte by byte. Longer ones come from the server.
pub const START_MAX_BYTES: usize = 64 * 1024;

/// What the agent begins with; all texts end with a zero byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start<'a> {
    /// Whether standard input will come.
    pub stdin: bool,
    /// Working directory.
    pub cwd: &'a [u8],
    /// What is executed: an absolute path.
    pub program: &'a [u8],
    /// Its own name, then its arguments.
    pub argv: Vec<&'a [u8]>,
    /// `K=V`.
    pub env: Vec<&'a [u8]>,
    /// [`ToAgent::Start`].
    pub message: &'a [u8],
}

/// The order for a program. None where it has to come from the
/// server: it is too long, has a work tree to be copied first, is no absolute path, or cannot be said to a kernel at all.
pub fn encode(program: &Program, restart: Restart, health: Option<&HealthCheck>) -> Option<Vec<u8>> {
    if program.work_tree.is_some() || !program.path.starts_with('/') {
        return None;
    }
    let variables: Vec<String> = program.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let count = (program.args.len() + 1).to_string();
    let name = program.own_name();
    let head = [
        if program.stdin { "1" } else { "0" },
        &count,
        program.cwd.as_deref().unwrap_or("/"),
        &program.path,
        name.as_deref().unwrap_or(&program.path),
    ];
    let rest = program.args.iter().chain(&variables).map(String::as_str);
    let mut bytes = Vec::new();
    for text in head.into_iter().chain(rest) {
        if text.contains('\0') {
            return None;
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    }
    bytes.push(0);
    let start = ToAgent::Start { program: Some(program.clone()), restart, health: health.cloned() };
    bytes.extend(serde_json::to_vec(&start).ok()?);
    (bytes.len() <= START_MAX_BYTES).then_some(bytes)
}

/// Reads an order; none where it is not whole.
pub fn decode(mut bytes: &[u8]) -> Option<Start<'_>> {
    let mut next = || {
        let (text, rest) = bytes.split_at(bytes.iter().position(|byte| *byte == 0)? + 1);
        bytes = rest;
        Some(text)
    };
    let stdin = next()? == b"1\0";
    let count: usize = std::str::from_utf8(next()?.strip_suffix(b"\0")?).ok()?.parse().ok()?;
    let (cwd, program) = (next()?, next()?);
    let mut argv = Vec::new();
    for _ in 0..count {
        argv.push(next()?);
    }
    let mut env = Vec::new();
    loop {
        match next()? {
            // A variable has a `=` at least.
            b"\0" => break,
            variable => env.push(variable),
        }
    }
    Some(Start { stdin, cwd, program, argv, env, message: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            path: "/nix/store/x/bin/p".into(),
            args: vec!["".into(), "b c".into()],
            env: [("A".to_owned(), "".to_owned()), ("B".to_owned(), "1=2".to_owned())].into(),
            cwd: None,
            extra_roots: vec![],
            work_tree: None,
            stdin: true,
        }
    }

    #[test]
    fn an_order_comes_back_as_it_was() {
        let bytes = encode(&program(), Restart::Always, None).expect("it can be said");
        let start = decode(&bytes).expect("whole");
        assert!(start.stdin);
        assert_eq!((start.cwd, start.program), (&b"/\0"[..], &b"/nix/store/x/bin/p\0"[..]));
        assert_eq!(start.argv, [&b"/nix/store/x/bin/p\0"[..], b"\0", b"b c\0"]);
        assert_eq!(start.env, [&b"A=\0"[..], b"B=1=2\0"]);
        let message: ToAgent = serde_json::from_slice(start.message).expect("a message");
        let whole = ToAgent::Start { program: Some(program()), restart: Restart::Always, health: None };
        assert_eq!(message, whole);
        let head = bytes.len() - start.message.len();
        for length in 0..head {
            assert_eq!(decode(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn what_cannot_be_begun_without_the_server_is_left_to_it() {
        let none = |program: Program| assert_eq!(encode(&program, Restart::Never, None), None);
        none(Program { path: "bin/p".into(), ..program() });
        none(Program { args: vec!["a\0b".into()], ..program() });
        none(Program { args: vec!["a".repeat(START_MAX_BYTES)], ..program() });
        let tree = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-tree".parse().expect("a store path");
        none(Program { work_tree: Some(tree), ..program() });
    }
}
