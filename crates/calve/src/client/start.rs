//! Starts the local server on demand. However many clients find none at once, one starts it and all connect to it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use calve_server::dirs::Dirs;

use crate::client::connect::{Endpoint, Stream};
use crate::dirs;
use crate::failure::{Failure, Outcome};

/// How long the local server may take until it listens: it takes milliseconds, on a host under full load seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks at the socket: short against the start of a process.
const LOOK_PAUSE: Duration = Duration::from_millis(3);
/// Below this many free bytes a server cannot begin: its database takes as much.
const FULL_BELOW_BYTES: u64 = 64 * 1024;
/// Longest part of the server's log that is searched for its last words.
const LOG_TAIL_BYTES: u64 = 4096;

/// Starts the server and connects to it.
pub async fn start(dirs: &Dirs, endpoint: &Endpoint) -> Outcome<Stream> {
    dirs::make(dirs)?;
    let lock = File::create(dirs.run.join("start.lock"))
        .map_err(|error| Failure::failed("the local server cannot be started").caused_by(error))?;
    let deadline = Instant::now() + START_DEADLINE;
    let mut child: Option<Child> = None;
    let log_before = std::fs::metadata(dirs.server_log()).map_or(0, |meta| meta.len());
    loop {
        // Also after the lock was won: whoever held it before may have started the server.
        let locked = child.is_some() || lock.try_lock().is_ok();
        if let Ok(stream) = endpoint.connect().await {
            return Ok(stream);
        }
        match &mut child {
            None if locked => child = Some(spawn(dirs)?),
            None => {}
            Some(running) => {
                if let Ok(Some(status)) = running.try_wait()
                    && !status.success()
                {
                    return Err(last_words(dirs, log_before));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "the local server was started and does not listen after {} s",
                START_DEADLINE.as_secs()
            ))
            .hint(format!("its log is {}", dirs.server_log().display())));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// `calve server` in a session of its own, so that it outlives this terminal.
fn spawn(dirs: &Dirs) -> Outcome<Child> {
    let failed = |error| Failure::failed("the local server cannot be started").caused_by(error);
    let log = File::options().create(true).append(true).open(dirs.server_log()).map_err(failed)?;
    let log_too = log.try_clone().map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["server", "--on-demand"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(log).stderr(log_too);
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().map_err(failed)
}

/// That the server ended at once, with the last line that it wrote behind what its log held before.
fn last_words(dirs: &Dirs, log_before: u64) -> Failure {
    use std::io::{Read, Seek, SeekFrom};
    let path = dirs.server_log();
    let mut tail = Vec::new();
    if let Ok(mut log) = File::open(&path) {
        let length = log.metadata().map_or(0, |meta| meta.len());
        let start = length.saturating_sub(LOG_TAIL_BYTES).max(log_before);
        let read = log.seek(SeekFrom::Start(start));
        let _ = read.and_then(|_| log.read_to_end(&mut tail));
    }
    if tail.is_empty() && is_full(&dirs.data) {
        let data = dirs.data.display();
        return Failure::failed(format!("the local server cannot be started: the disk of {data} is full"))
            .hint("free some space there");
    }
    let tail = String::from_utf8_lossy(&tail);
    let mut lines = tail.lines().rev().filter(|line| !line.trim().is_empty());
    let failure = |said: &str| Failure::failed(format!("the local server ended at its start{said}"));
    let last = lines.next().unwrap_or_default();
    let (error, hint) = match last.strip_prefix("hint: ") {
        Some(hint) => (lines.next().unwrap_or_default(), Some(hint)),
        None => (last, None),
    };
    let error = error.strip_prefix("error: ").unwrap_or(error);
    let failure = failure(&if error.is_empty() { String::new() } else { format!(": {error}") });
    failure.hint(hint.map_or_else(|| format!("its log is {}", path.display()), str::to_owned))
}

/// Whether nothing can be written there any more (statvfs(3)).
fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < FULL_BELOW_BYTES)
}
