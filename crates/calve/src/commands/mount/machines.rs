//! The process that serves a closure lazily to machines: nobody's child, gone when the last machine has.
//!
//! ```text
//!  calve run --store lazy ── starts ──▶ calve mount --for-machines ── mounts ──▶ <runtime>/lazy/<roots>/store
//!     ◀── READY, or why not ───────────────┤
//!     ── asks the server for the machine    ├── looks every second whether a machine uses it
//! ```

use std::io::Write;
use std::time::{Duration, Instant};

use calve_node::lazy::LazyDirs;
use calve_server::daemon;
use rustix::fs::{Mode, OFlags};

use super::{Args, Mounted};
use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};

/// What is written to standard output once the closure is mounted.
pub const READY: &str = "ready";
/// Time between two looks at the machines that use the closure.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long it stays for the first machine: the server may have to find out first what drivers can do.
const FIRST_MACHINE_MAX: Duration = Duration::from_secs(60);
/// How long it stays for the next one, when the last has gone.
const NEXT_MACHINE_MAX: Duration = Duration::from_secs(5);
/// Time between two notes that the closure is used: a fraction of the shortest time after which paths are pruned.
const NOTE_USE_EVERY: Duration = Duration::from_secs(600);
/// How long it waits for the kernel to let go of the mount.
const LET_GO_MAX: Duration = Duration::from_secs(10);

pub async fn serve(args: &Args) -> Outcome {
    let failed = |what: &'static str| move |error: std::io::Error| Failure::failed(what).caused_by(error);
    let dirs = dirs::find()?;
    dirs::make(&dirs)?;
    daemon::init_log_at(&dirs.lazy_log()).map_err(failed("the log cannot be written"))?;
    let dir = LazyDirs::new(&dirs.run).of(&args.paths);
    dir.create().map_err(failed("the directory of the mount cannot be made"))?;
    // Another one may be quicker: then that serves.
    let Some(_lock) = dir.lock().map_err(failed("the directory of the mount cannot be locked"))? else {
        return Ok(ExitStatus::Success);
    };
    let mounted = match Mounted::new(args, &dir.mount()).await {
        Ok(mounted) => mounted,
        Err(failure) => {
            dir.remove();
            return Err(failure);
        }
    };
    let announce = || dir.announce(&mounted.closure);
    let ready = announce().and_then(|()| leave_caller());
    if let Err(error) = ready {
        dir.remove();
        return Err(failed("nobody can be told of the mount")(error));
    }
    mounted.prefetch_soon();
    let unused = async {
        let made = dir.changed();
        let (mut unused_since, mut noted) = (Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            if noted.elapsed() > NOTE_USE_EVERY {
                mounted.note_use().await;
                noted = Instant::now();
            }
            // Also of machines that lived between two looks.
            let used_once = dir.changed() != made;
            let max = if used_once { NEXT_MACHINE_MAX } else { FIRST_MACHINE_MAX };
            if dir.is_used() {
                unused_since = Instant::now();
            } else if unused_since.elapsed() > max {
                dir.retract();
                // A machine that came just now has seen it still.
                if !dir.is_used() || announce().is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = unused => {}
        ended = mounted.wait_for_end() => ended?,
    }
    dir.remove();
    let _ = tokio::time::timeout(LET_GO_MAX, mounted.mount.ended()).await;
    Ok(ExitStatus::Success)
}

/// Tells the caller that all is well, and hears and says nothing more.
fn leave_caller() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}
