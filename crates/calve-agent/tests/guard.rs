//! The guard with a real QEMU that has a machine of no kind: it starts in 40 ms and never ends by itself.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use calve_wire::guard::{
    END_FILE, GO_BYTE, GUARD_SLACK_MS, GuardLease, GuardProcesses, LEASE_FILE, PROCESSES_FILE,
};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

struct Guarded {
    dir: tempfile::TempDir,
    guard: Child,
    said: BufReader<ChildStdout>,
}

impl Guarded {
    fn start(lease: GuardLease, qemu: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_lease(dir.path(), lease);
        let mut guard = Command::new(env!("CARGO_BIN_EXE_calve-agent"))
            .args(["guard", "--run-dir", dir.path().to_str().expect("UTF-8"), "--"])
            .args(qemu)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was built");
        let said = BufReader::new(guard.stdout.take().expect("piped"));
        Self { dir, guard, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    fn go(&mut self) {
        assert_eq!(self.line(), "ready");
        self.guard.stdin.take().expect("piped").write_all(&[GO_BYTE]).expect("it reads");
    }

    fn qemu_pid(&self) -> i32 {
        let json = fs::read(self.dir.path().join(PROCESSES_FILE)).expect("written");
        serde_json::from_slice::<GuardProcesses>(&json).expect("it parses").qemu_pid
    }

    /// Waits for the guard's end; then QEMU is gone as well. Answers with what was written down.
    fn ended(mut self, qemu_pid: i32) -> String {
        let end = Instant::now() + PATIENCE;
        while self.guard.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < end, "the guard did not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(!Path::new(&format!("/proc/{qemu_pid}")).exists(), "the guard waits for QEMU");
        fs::read_to_string(self.dir.path().join(END_FILE)).unwrap_or_default()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

fn write_lease(dir: &Path, lease: GuardLease) {
    fs::write(dir.join("new"), serde_json::to_vec(&lease).expect("numbers")).expect("written");
    fs::rename(dir.join("new"), dir.join(LEASE_FILE)).expect("renamed");
}

const QEMU: [&str; 7] = [
    "qemu-system-x86_64",
    "-M",
    "none",
    "-nodefaults",
    "-nographic",
    "-qmp",
    "unix:guard.sock,server=on,wait=off",
];
const ENDLESS: GuardLease = GuardLease { deadline_boottime_ms: None, grace_ms: 0 };
/// So long ago that the slack is over as well.
const OVER: GuardLease = GuardLease { deadline_boottime_ms: Some(0), grace_ms: 0 };

#[test]
fn a_lease_that_is_changed_to_one_that_is_over_ends_qemu() {
    let mut guarded = Guarded::start(ENDLESS, &QEMU);
    guarded.go();
    let qemu = guarded.qemu_pid();
    let up_ms = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs() * 1000;
    assert!(up_ms > GUARD_SLACK_MS, "this host has only just booted");
    write_lease(guarded.dir.path(), OVER);
    assert!(guarded.ended(qemu).starts_with("the guard ended QEMU, because the lease was over"));
}

#[test]
fn without_the_drivers_word_nothing_stays() {
    let mut guarded = Guarded::start(ENDLESS, &QEMU);
    assert_eq!(guarded.line(), "ready");
    let qemu = guarded.qemu_pid();
    drop(guarded.guard.stdin.take());
    assert!(guarded.ended(qemu).contains("its driver died"));
}

#[test]
fn a_removed_run_directory_ends_qemu() {
    let mut guarded = Guarded::start(ENDLESS, &QEMU);
    guarded.go();
    let qemu = guarded.qemu_pid();
    fs::remove_dir_all(guarded.dir.path()).expect("removed");
    assert_eq!(guarded.ended(qemu), "");
}

#[test]
fn a_guard_that_is_killed_takes_qemu_along() {
    let mut guarded = Guarded::start(ENDLESS, &QEMU);
    guarded.go();
    let qemu = guarded.qemu_pid();
    guarded.guard.kill().expect("it lives");
    let end = Instant::now() + PATIENCE;
    let gone = || fs::read_to_string(format!("/proc/{qemu}/stat")).map_or(true, |stat| stat.contains(") Z "));
    while !gone() {
        assert!(Instant::now() < end, "QEMU outlives its guard");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_qemu_that_refuses_its_arguments_is_quoted() {
    let mut guarded = Guarded::start(ENDLESS, &["qemu-system-x86_64", "-M", "none", "-device", "nonsense"]);
    let line = guarded.line();
    assert!(line.starts_with("QEMU ended with code 1: ") && line.contains("nonsense"), "{line}");
    let mut guarded = Guarded::start(ENDLESS, &["/nonexistent/qemu"]);
    let line = guarded.line();
    assert!(line.starts_with("/nonexistent/qemu cannot be started"), "{line}");
}
