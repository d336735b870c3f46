//! The agent of a host that was adopted: it lives as long as the session of SSH that started it, and what it starts no longer,
//! but for `calve-switch`. There is nothing to find again, so that a restart of the host or its own end costs a connection.
//!
//! *Invariant*: it keeps nothing on the host, and ends nothing that it has not started.

use std::fs::File;
use std::io::{self, Read};

use calve_wire::agent::Remaining;
use calve_wire::frame::{PREAMBLE_BYTES, Token};
use calve_wire::lend::Lent;
use calve_wire::machine::ExitCause;

use super::say;
use crate::agent::transport::Transport;
use crate::agent::transport::given::Given;
use crate::agent::{self, Config};
use crate::enclosure::Enclosure;
use crate::{plain, service};

/// Serves whoever is at the other end of standard input and output.
pub fn serve() -> anyhow::Result<()> {
    say(&Lent::Connected);
    // Numbers of their own, so that they close here whoever has the standard ones.
    let mut input = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let mut preamble = [0; PREAMBLE_BYTES];
    match input.read_exact(&mut preamble) {
        // Nobody has anything to say.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read?,
    }
    // Who speaks here has logged in as whom this runs as, which is more than the token of a link could show.
    let token = Token::of_preamble(&preamble)?;
    let given = Given { input: input.into(), output, received: preamble.to_vec() };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    service::resume_switch();
    let init = plain::fork_init()?;
    let served = agent::run(Config {
        token,
        remaining: Remaining { until_deadline_ms: None, grace_ms: 0 },
        transport: Box::new(move || Ok(Transport::Given(given))),
        init,
        enclosure: Box::new(AdoptedHost),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    });
    match served {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Ok(()),
    }
}

/// A host that was there before, and stays.
struct AdoptedHost;

impl Enclosure for AdoptedHost {
    fn exit_cause(&self) -> ExitCause {
        ExitCause::Normal
    }

    fn ends_with_lease(&self) -> bool {
        false
    }

    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn shut_down(&self) -> bool {
        false
    }

    fn on_end(&self) {}

    fn outlives_agent(&self) -> bool {
        true
    }
}
