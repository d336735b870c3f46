//! The way from the server's SSH connection to the agent of a machine.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use calve_wire::lend::Lent;

use super::base::{Base, Machine};
use super::say;

/// How long the agent of a machine that is there may not listen: it begins, or it ends.
const LISTEN_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes passed on at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Passes standard input and output on, to the end of either.
pub fn connect(base: &Base, id: &str) -> anyhow::Result<()> {
    let gone = |failure: calve_wire::agent::SandboxFailure| anyhow::anyhow!(failure.message);
    let machine = base.machine(id).map_err(gone)?;
    let Some(socket) = reach(&machine)? else {
        if base.path().exists() {
            base.vacate(base.count().map_err(gone)?);
        }
        say(&Lent::Gone);
        return Ok(());
    };
    say(&Lent::Connected);
    let to_agent = socket.try_clone()?;
    thread::spawn(move || {
        let _ = pass(io::stdin().lock(), &to_agent);
        // The server is gone; the other direction ends as well.
        let _ = to_agent.shutdown(Shutdown::Both);
    });
    // Unbuffered: what the agent says is on its way at once.
    let mut stdout = std::fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let _ = pass(&socket, &mut stdout);
    Ok(())
}

/// The agent's socket; none where the machine is not there, or has no keeper.
fn reach(machine: &Machine) -> anyhow::Result<Option<UnixStream>> {
    let until = Instant::now() + LISTEN_MAX;
    loop {
        match machine.take() {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // By a short name: a socket's path has 107 bytes at most.
        let connected =
            std::env::set_current_dir(&machine.dir).and_then(|()| UnixStream::connect("agent.sock"));
        match connected {
            Ok(socket) => return Ok(Some(socket)),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            count => to.write_all(&piece[..count])?,
        }
    }
}
