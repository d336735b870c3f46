//! The processes that carry a switch out: nobody's children, in no service's cgroup, and one of them watches the other.
//!
//! ```text
//!  begin ─fork─▶ guard (own session) ─fork─▶ supervisor ─▶ switch-to-configuration, health checks
//!                  └── ended before its time: everything it ran is killed, and another one resumes
//! ```

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::disk::Disk;
use crate::host::Host;
use crate::program::kill_children;
use crate::supervise::{self, Start};

/// Name of these processes, by which the agent's init tells that they are not its own to kill.
const NAME: &std::ffi::CStr = c"calve-switch";
/// Supervisors that are started for one switch: each of them does one step at least, or somebody keeps killing them.
const SUPERVISORS_MAX: u32 = 200;
/// Pause before another supervisor is started.
const PAUSE: Duration = Duration::from_millis(200);
/// A cgroup of our own, beside those of all services: who ends the agent's ends what is in it.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/calve-switch", "/sys/fs/cgroup/systemd/calve-switch"];

/// Leaves a guard behind.
pub fn leave_behind(host: &Host, disk: Disk, why: Start) -> anyhow::Result<()> {
    // SAFETY: this program has one thread, so the child has all of its memory in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            let code = guard(host, disk, why);
            // SAFETY: ends the child at once, without running what the parent has registered.
            unsafe { libc::_exit(code) }
        }
        // The record's lock is the child's now.
        _ => Ok(()),
    }
}

fn guard(host: &Host, mut disk: Disk, mut why: Start) -> i32 {
    leave();
    for _ in 0..SUPERVISORS_MAX {
        // SAFETY: as above; the guard has one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
            let done = supervise::run(host, &mut disk, &why);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        let ended_well = child > 0 && wait_for(child);
        kill_children();
        if ended_well {
            return 0;
        }
        why = Start::Resume;
        std::thread::sleep(PAUSE);
        // What the former one wrote is newer.
        disk.catch_up();
    }
    1
}

fn wait_for(child: i32) -> bool {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid to be written to.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child {
            return libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        }
        if waited < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// Leaves session, terminal, streams, cgroup and working directory of whoever ran this program.
fn leave() {
    let _ = rustix::process::setsid();
    // SAFETY: a NUL-terminated name of less than 16 bytes (prctl(2), PR_SET_NAME).
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let _ = std::env::set_current_dir("/");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    for dir in CGROUPS {
        let parent = std::path::Path::new(dir).parent().expect("it has one");
        if parent.join("cgroup.procs").exists()
            && (std::path::Path::new(dir).is_dir() || std::fs::create_dir(dir).is_ok())
        {
            let _ = std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string());
        }
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}
