//! Passes what the server and a machine's agent say on to each other: a socket here, a session there.

use std::io;
use std::time::Duration;

use calve_core::MachineId;
use calve_provider::ssh::Target;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use super::super::driver_error;
use super::SshDriver;

/// First pause after a host could not be reached, and the longest, up to which each doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Listens at the machine's socket for as long as the host has the machine.
pub(super) async fn run(driver: SshDriver, id: MachineId) {
    let listener = match listen(&driver, id) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::error!(machine = %id, %error, "nobody can be passed on to a borrowed host");
        }
    };
    let mut pause = PAUSE_FIRST;
    loop {
        let Ok((mut here, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE_FIRST).await;
            continue;
        };
        let Some(entry) = driver.0.book.get(id) else { return };
        let Ok(target) = entry.target.parse::<Target>() else { return };
        let lender = &driver.0.lender;
        let reached = match entry.adopted {
            Some(_) => lender.speak(&target).await.map(|(session, own)| Some((session, Some(own)))),
            None => match lender.connect(&target, id).await {
                Ok(session) => Ok(session.map(|session| (session, None))),
                Err(error) => Err(driver_error(error)),
            },
        };
        match reached {
            // An adopted host's connection ends with the talk.
            Ok(Some((mut session, _own))) => {
                pause = PAUSE_FIRST;
                driver.0.away().remove(&id);
                let _ = pass(&mut here, &mut session).await;
            }
            Ok(None) => {
                tracing::info!(machine = %id, host = %target, "the host has given the machine up");
                // The next list does not show it any more.
                let driver = driver.clone();
                tokio::spawn(async move { driver.0.forget(id, &entry) });
                return;
            }
            Err(error) => {
                tracing::debug!(machine = %id, %error, "not reached");
                driver.0.away().insert(id, error.to_string());
                drop(here);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn listen(driver: &SshDriver, id: MachineId) -> io::Result<UnixListener> {
    let socket = driver.0.dirs.create(id)?.join("agent.sock");
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

/// To the end of either side.
async fn pass(here: &mut UnixStream, session: &mut calve_provider::ssh::Session) -> io::Result<()> {
    let Some(mut stdin) = session.stdin.take() else { return Ok(()) };
    let (mut read, mut write) = here.split();
    let there = async {
        tokio::io::copy(&mut read, &mut stdin).await?;
        stdin.shutdown().await
    };
    tokio::select! {
        passed = there => passed,
        passed = tokio::io::copy_buf(&mut session.stdout, &mut write) => passed.map(drop),
    }
}
