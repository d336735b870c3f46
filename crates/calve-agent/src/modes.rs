//! The modes of the program, and its arguments.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use crate::agent::transport::dial::Server;
use crate::lend::Task;

/// What the program is to be, with everything that it needs.
#[derive(Debug)]
pub enum Mode {
    /// `plain --run-dir DIR [--device PATH] [--ready-fd N]`
    Plain {
        /// Holds `sandbox.json`, gets `agent.sock`.
        run_dir: PathBuf,
        /// The server is at the other end of this character device instead.
        device: Option<PathBuf>,
        /// Gets `R` once the agent listens.
        ready: Option<OwnedFd>,
    },
    /// `sandbox --run-dir DIR --ready-fd N`
    Sandbox {
        /// Holds `sandbox.json`, gets `agent.sock` and what is left of the machine on the host.
        run_dir: PathBuf,
        /// The socket of the driver that waits for the machine.
        ready: OwnedFd,
    },
    /// `standby --ready-fd N --room TEXT`
    Standby {
        /// The socket of the driver, who will name a run directory.
        ready: OwnedFd,
    },
    /// `probe`
    Probe,
    /// `service --server HOST:PORT --fingerprint HEX --token-file F`
    Service {
        /// Who is dialled.
        server: Server,
        /// Holds the machine's token.
        token_file: PathBuf,
    },
    /// `lend --base DIR [--connect ID | --give-back ID | --list yes | --host yes]`
    Lend {
        /// Holds everything of lent machines.
        base: PathBuf,
        /// What is to be done.
        task: Task,
    },
    /// `service --user-data FILE|provider --key-file F`
    Joined {
        /// The user data; `provider` for what the machine's provider says.
        user_data: PathBuf,
        /// Holds the agent's key; made where it is missing.
        key_file: PathBuf,
    },
    /// `guard --run-dir DIR [--cpus-milli N] -- PROGRAM [ARGUMENT]…`
    Guard {
        /// Everything behind the mode's name.
        arguments: Vec<OsString>,
    },
    /// `live-store`: the guard's child that becomes the daemon of a live store, in the run directory
    LiveStore,
    /// `beside-system`: in a guest, beside the system's own init.
    BesideSystem,
    /// `--version`
    Version,
}

/// Reads the arguments; the first is the program's own name. Takes over the descriptor of `--ready-fd`.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Mode> {
    let mut arguments = arguments.into_iter().skip(1);
    let mode = text(arguments.next().unwrap_or_default())?;
    if mode == "guard" {
        // Paths of images in a program's arguments may be any bytes.
        return Ok(Mode::Guard { arguments: arguments.collect() });
    }
    let arguments = arguments.map(text).collect::<anyhow::Result<Vec<_>>>()?.into_iter();
    let mut options = Options::parse(arguments)?;
    let mode = match mode.as_str() {
        "plain" => Mode::Plain {
            run_dir: options.need("--run-dir")?.into(),
            device: options.take("--device").map(PathBuf::from),
            ready: options.ready_descriptor()?,
        },
        "sandbox" => Mode::Sandbox {
            run_dir: options.need("--run-dir")?.into(),
            ready: options.ready_descriptor()?.context("--ready-fd is missing")?,
        },
        "standby" => {
            // Any text: only the room that it takes among the arguments is wanted, for the run directory's path.
            options.need("--room")?;
            Mode::Standby { ready: options.ready_descriptor()?.context("--ready-fd is missing")? }
        }
        "probe" => Mode::Probe,
        "service" if options.has("--user-data") => Mode::Joined {
            user_data: options.need("--user-data")?.into(),
            key_file: options.need("--key-file")?.into(),
        },
        "service" => Mode::Service {
            server: Server {
                address: options.need("--server")?,
                fingerprint: options.need("--fingerprint")?.parse()?,
            },
            token_file: options.need("--token-file")?.into(),
        },
        "lend" => Mode::Lend { base: options.need("--base")?.into(), task: options.task()? },
        "live-store" => Mode::LiveStore,
        "beside-system" => Mode::BesideSystem,
        "--version" => Mode::Version,
        other => {
            bail!(
                "{other:?} is no mode of calve-agent: plain, sandbox, standby, service, lend, guard, probe; calve starts it, people rarely do"
            )
        }
    };
    options.ensure_empty()?;
    Ok(mode)
}

fn text(argument: OsString) -> anyhow::Result<String> {
    argument.into_string().map_err(|argument| anyhow::anyhow!("{argument:?} is not UTF-8"))
}

/// `--name value` pairs that were not asked for yet.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Vec::new();
        while let Some(name) = arguments.next() {
            ensure!(name.starts_with("--"), "{name:?} is no option: options are --name value");
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            options.push((name, value));
        }
        Ok(Self(options))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, _)| given == name)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(at).1)
    }

    fn need(&mut self, name: &str) -> anyhow::Result<String> {
        self.take(name).with_context(|| format!("{name} is missing"))
    }

    fn task(&mut self) -> anyhow::Result<Task> {
        let host = self.take("--host");
        Ok(match (self.take("--connect"), self.take("--give-back"), self.take("--list"), host) {
            (None, None, None, None) => Task::Lend,
            (Some(id), None, None, None) => Task::Connect(id),
            (None, Some(id), None, None) => Task::GiveBack(id),
            (None, None, Some(_), None) => Task::List,
            (None, None, None, Some(_)) => Task::Host,
            _ => bail!("--connect, --give-back, --list and --host do not go together"),
        })
    }

    fn ready_descriptor(&mut self) -> anyhow::Result<Option<OwnedFd>> {
        let Some(text) = self.take("--ready-fd") else { return Ok(None) };
        let number: i32 = text.parse().with_context(|| format!("--ready-fd {text:?} is no number"))?;
        // SAFETY: F_GETFD only asks whether the number is an open descriptor.
        let is_open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        ensure!(number != 1 && number != 2 && is_open, "--ready-fd {number} is not open");
        // SAFETY: it is open, was passed on for this purpose, and nothing else here knows its number.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        if number > 2 {
            rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
            return Ok(Some(descriptor));
        }
        // It came as standard input, which is empty from here on and stays open.
        let moved = rustix::io::fcntl_dupfd_cloexec(&descriptor, 3)?;
        let mut stdin = std::mem::ManuallyDrop::new(descriptor);
        rustix::io::dup2(std::fs::File::open("/dev/null")?, &mut stdin)?;
        Ok(Some(moved))
    }

    fn ensure_empty(self) -> anyhow::Result<()> {
        match self.0.first() {
            Some((name, _)) => bail!("{name} is no option of this mode"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> anyhow::Result<Mode> {
        parse(format!("calve-agent {line}").split_whitespace().map(OsString::from))
    }

    #[test]
    fn modes_are_read_and_mistakes_named() {
        assert!(matches!(parse_line("plain --run-dir /x"), Ok(Mode::Plain { ready: None, .. })));
        for (line, word) in [
            ("", "mode"),
            ("plain", "--run-dir"),
            ("plain --run-dir", "value"),
            ("plain --run-dir /x --ready-fd 999", "not open"),
            ("plain --run-dir /x --color red", "--color"),
            ("service --server a:1 --fingerprint zz --token-file f", "fingerprint"),
            ("lend --base /x --host yes --give-back 1", "together"),
        ] {
            let error = parse_line(line).expect_err(line).to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
