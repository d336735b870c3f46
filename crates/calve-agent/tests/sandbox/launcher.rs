//! The agent's role: launches the sandbox of a run directory, with an init that runs one program.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use calve_agent::confine::Confinement;
use calve_agent::sandbox::standby::Standby;
use calve_agent::sandbox::title::Title;
use calve_agent::sandbox::{self, Sandbox, SandboxError};
use calve_wire::agent::SandboxSpec;
use calve_wire::machine::Network;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

/// What the launcher saw; written to `seen.json` in the run directory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    pub notes: Vec<String>,
    pub oom_kills: u64,
    pub pids_limit_hits: u64,
}

/// What init does before the first program.
pub type Begin = fn(&Confinement);

/// It leaves everything to the child.
pub fn begin_with_programs(_: &Confinement) {}

/// As the agent does it: it settles once for all programs.
pub fn settle(confinement: &Confinement) {
    confinement.settle().expect("the host can be left");
}

/// `launch RUN_DIR PROGRAM ARGS…`
pub fn launch(args: Vec<String>, begin: Begin) {
    let (run_dir, argv) = (Path::new(&args[0]), c_strings(&args[1..]));
    let spec = spec(run_dir);
    let launched = sandbox::launch(&spec, run_dir, |confinement| init(&confinement, &argv, begin));
    look_after(launched, run_dir);
}

/// `standby RUN_DIR PROGRAM ARGS…`: the sandbox is there before its machine is looked at.
pub fn stand_by(args: Vec<String>, begin: Begin) {
    let argv = c_strings(&args[1..]);
    let title = Title::of_this_process().expect("the kernel says where the arguments are");
    let run_dir = Path::new(&args[0]);
    let standby = Standby::prepare(Some(title), |confinement| init(&confinement, &argv, begin));
    let Some(standby) = standby.expect("it can be made") else { return launch(args, begin) };
    assert!(standby.is_fit());
    let spec = spec(run_dir);
    title.set(run_dir);
    let launched = match standby.assign(&spec, run_dir) {
        Ok(assigned) => assigned,
        Err(standby) => {
            assert_eq!(spec.network, Network::Host, "nothing else needs another sandbox here");
            drop(standby);
            sandbox::launch(&spec, run_dir, |confinement| init(&confinement, &argv, begin))
        }
    };
    look_after(launched, run_dir);
}

fn spec(run_dir: &Path) -> SandboxSpec {
    serde_json::from_slice(&fs::read(run_dir.join("sandbox.json")).unwrap()).unwrap()
}

fn c_strings(args: &[String]) -> Vec<CString> {
    args.iter().map(|arg| CString::new(arg.as_str()).unwrap()).collect()
}

fn look_after(launched: Result<Sandbox, SandboxError>, run_dir: &Path) {
    let sandbox = match launched.and_then(|mut sandbox| sandbox.entered().map(|()| sandbox)) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("{error} ({:?})", error.hint);
            std::process::exit(99);
        }
    };
    poll(&mut [PollFd::new(&sandbox.pidfd().as_fd(), PollFlags::IN)], None).unwrap();
    let seen = Seen {
        notes: sandbox.notes().to_vec(),
        oom_kills: sandbox.oom_kills(),
        pids_limit_hits: sandbox.pids_limit_hits(),
    };
    fs::write(run_dir.join("seen.json"), serde_json::to_vec(&seen).unwrap()).unwrap();
    sandbox.remove().unwrap();
}

/// Makes this process and its children see a kernel without mount_setattr(2), which came with Linux 5.12.
pub fn forget_mount_setattr() {
    use seccompiler::{SeccompAction, SeccompFilter};
    let calls = [(libc::SYS_mount_setattr, Vec::new())].into();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, absent, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Starts the program and ends with it, whatever else is alive.
fn init(confinement: &Confinement, argv: &[CString], begin: Begin) -> Infallible {
    begin(confinement);
    let mut pointers: Vec<_> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: this process has one thread, so that the child may go on with everything; the pointers are to C strings and
    // a null at the end.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let code = match confinement.apply() {
                Ok(()) => {
                    libc::execve(pointers[0], pointers.as_ptr(), [std::ptr::null()].as_ptr());
                    127
                }
                Err(_) => 126,
            };
            libc::_exit(code);
        }
        let mut status = 0;
        while libc::waitpid(-1, &mut status, 0) != child {}
        libc::_exit(if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            128 + libc::WTERMSIG(status)
        })
    }
}
