//! Killing everything that came from init, also what has left its group, its session or its parent.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Name of the processes that switch the system of a host: they must outlive the agent that began them, and where init is
/// the host's first process there are none.
const SPARED: &str = "calve-switch";

/// Sends SIGKILL to every process of the machine but init and `spare`. Returns whether there was any left to see; what
/// forks meanwhile is seen by the next call.
pub fn kill_everything(spare: Option<i32>) -> io::Result<bool> {
    if std::process::id() == 1 {
        return kill_all_of_namespace(spare);
    }
    let victims = descendants(spare)?;
    for (pid, start) in &victims {
        kill_if_same(*pid, *start);
    }
    Ok(!victims.is_empty())
}

/// Whether anything but init and `spare` is left.
pub fn anything_left(spare: Option<i32>) -> io::Result<bool> {
    if std::process::id() == 1 && spare.is_none() {
        return Ok(has_children());
    }
    Ok(!descendants(spare)?.is_empty())
}

/// As process 1: one call kills all, atomically towards fork(2). A spared process is frozen with the others meanwhile.
fn kill_all_of_namespace(spare: Option<i32>) -> io::Result<bool> {
    let signal_all = |signal: i32| {
        // SAFETY: a plain system call; -1 means every process that may be signalled, except the caller (kill(2)).
        unsafe { libc::kill(-1, signal) == 0 }
    };
    let Some(spare) = spare else { return Ok(signal_all(libc::SIGKILL)) };
    signal_all(libc::SIGSTOP);
    let victims = descendants(Some(spare));
    if let Ok(victims) = &victims {
        for (pid, start) in victims {
            kill_if_same(*pid, *start);
        }
    }
    // Also where the list could not be read: the agent must go on.
    // SAFETY: a plain system call on a child that was not reaped yet.
    unsafe { libc::kill(spare, libc::SIGCONT) };
    Ok(!victims?.is_empty())
}

fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a zeroed siginfo is valid to be written to.
    unsafe {
        let mut info = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &raw mut info, options) == 0
    }
}

/// Every process below init but `spare` and what is below that: process id and start time.
fn descendants(spare: Option<i32>) -> io::Result<Vec<(i32, u64)>> {
    let mut children: HashMap<i32, Vec<(i32, u64)>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some((parent, start)) = parent_and_start(pid)
            && !is_spared(pid)
        {
            children.entry(parent).or_default().push((pid, start));
        }
    }
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut parents = vec![std::process::id().cast_signed()];
    while let Some(parent) = parents.pop() {
        for &(pid, start) in children.get(&parent).into_iter().flatten() {
            if Some(pid) != spare && seen.insert(pid) {
                found.push((pid, start));
                parents.push(pid);
            }
        }
    }
    Ok(found)
}

fn is_spared(pid: i32) -> bool {
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    std::process::id() != 1 && name().trim_end() == SPARED
}

/// Fields 4 and 22 of `/proc/<pid>/stat` (proc_pid_stat(5)); none for a process that is gone.
fn parent_and_start(pid: i32) -> Option<(i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

/// A number may have been given to another process since it was listed; a descriptor of it cannot.
fn kill_if_same(pid: i32, start: u64) {
    let Some(handle) = Pid::from_raw(pid) else { return };
    let Ok(descriptor) = rustix::process::pidfd_open(handle, PidfdFlags::empty()) else { return };
    if parent_and_start(pid).is_some_and(|(_, now)| now == start) {
        let _ = rustix::process::pidfd_send_signal(&descriptor, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// Set where the test runs as process 1 of a namespace.
    const INSIDE: &str = "CALVE_TEST_INSIDE";

    #[test]
    fn as_process_1_everything_dies_but_the_spared() {
        if std::env::var_os(INSIDE).is_some() {
            return inside();
        }
        let this = std::env::current_exe().expect("a program");
        let name = "init::sweep::tests::as_process_1_everything_dies_but_the_spared";
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"])
            .arg(this)
            .args(["--exact", name, "--nocapture", "--test-threads", "1"])
            .env(INSIDE, "1")
            .output()
            .expect("unshare(1) of util-linux is needed");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "user namespaces are needed, or it failed inside: {text}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }

    fn inside() {
        assert_eq!(std::process::id(), 1);
        let sleeper = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell")
        };
        let mut spared = sleeper("exec sleep 1000");
        let mut others = [sleeper("exec sleep 1000"), sleeper("setsid sleep 1000 & sleep 1000")];
        let spare = Some(spared.id().cast_signed());
        assert!(anything_left(spare).expect("a proc filesystem"));
        assert!(kill_everything(spare).expect("killed"));
        for other in &mut others {
            assert_eq!(other.wait().expect("a child").signal(), Some(libc::SIGKILL));
        }
        while anything_left(spare).expect("a proc filesystem") {
            kill_everything(spare).expect("killed");
            // SAFETY: reaps the orphans, which came to this process; the spared one has not ended.
            unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        }
        assert!(spared.try_wait().expect("a child").is_none());
        assert!(kill_everything(None).expect("killed"));
        spared.wait().expect("a child");
        assert!(!anything_left(None).expect("no child"));
    }
}
