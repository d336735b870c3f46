//! Making a process of the machine: fork, session, terminal, descriptors, directory, confinement, work.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use calve_wire::agent::WindowSize;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::execute::Executable;
use super::packet::{NOT_FOUND_CODE, NOT_STARTED_CODE, NotStarted, Work};
use super::tree;
use crate::confine_api::Confine;

/// A process that runs, and the master of its terminal where it has one.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, session and group.
    pub pid: i32,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

/// Makes a process that does `work`. It is the leader of its own session and group. Returns once it is on its way: a
/// program is being executed, or the error says in a sentence why not.
pub fn spawn(
    work: Work,
    tty: Option<WindowSize>,
    descriptors: Vec<OwnedFd>,
    confine: &dyn Confine,
) -> Result<Spawned, NotStarted> {
    let work = Prepared::new(work)?;
    let (terminal, descriptors) = match tty {
        None => (None, descriptors),
        Some(size) => {
            let (master, peer) =
                open_terminal(size).map_err(|error| format!("there is no terminal: {error}"))?;
            (Some(master), vec![peer])
        }
    };
    let standard = match descriptors.as_slice() {
        [terminal] => [terminal.as_raw_fd(); 3],
        [stdin, stdout, stderr] => [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        _ => return Err("a process needs three standard descriptors".into()),
    };
    let (reports, reporter) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| format!("no pipe can be made: {error}"))?;
    // SAFETY: init has a single thread, so the child has all of its memory in a consistent state.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(format!("no process can be made: {}", io::Error::last_os_error()).into()),
        0 => become_child(&work, standard, terminal.is_some(), confine, reporter),
        _ => {
            drop(reporter);
            match read_failure(reports) {
                None => Ok(Spawned { pid, terminal }),
                Some((step, errno)) => Err(work.not_started(step, errno)),
            }
        }
    }
}

/// Work with everything that it needs made ready before the fork.
pub(super) enum Prepared {
    Execute { executable: Executable, cwd: CString },
    Task(Work),
}

impl Prepared {
    pub(super) fn new(work: Work) -> Result<Self, String> {
        let Work::Execute { argv, name, env, cwd } = work else { return Ok(Self::Task(work)) };
        let cwd = CString::new(cwd.unwrap_or_else(|| "/".to_owned()));
        let cwd = cwd.map_err(|_| "the working directory holds a NUL byte".to_owned())?;
        Ok(Self::Execute { executable: Executable::new(&argv, name.as_deref(), &env)?, cwd })
    }

    /// What to say of a child that failed.
    pub(super) fn not_started(&self, step: Step, errno: i32) -> NotStarted {
        let missing = matches!(step, Step::Execute) && matches!(errno, libc::ENOENT | libc::ENOTDIR);
        let code = if missing { NOT_FOUND_CODE } else { NOT_STARTED_CODE };
        NotStarted { message: self.explain(step, errno), code }
    }

    fn explain(&self, step: Step, errno: i32) -> String {
        let error = io::Error::from_raw_os_error(errno);
        match (step, self) {
            (Step::Directory, Self::Execute { cwd, .. }) => {
                format!("the working directory {} cannot be entered: {error}", cwd.to_string_lossy())
            }
            (Step::Execute, Self::Execute { executable, .. }) => executable.explain(errno),
            (Step::Confine, _) => format!("the process cannot be confined: {error}"),
            (Step::Setup | Step::Directory | Step::Execute, _) => {
                format!("the process cannot be set up: {error}")
            }
        }
    }
}

/// Where a child was when it failed.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Step {
    Setup = 1,
    Directory = 2,
    Confine = 3,
    Execute = 4,
}

impl Step {
    /// The step of a number.
    pub(super) fn of(number: u8) -> Option<Self> {
        [Self::Setup, Self::Directory, Self::Confine, Self::Execute]
            .into_iter()
            .find(|step| *step as u8 == number)
    }
}

/// The child's whole life up to its program; makes system calls only, but for tasks, which execute nothing.
fn become_child(
    work: &Prepared,
    standard: [RawFd; 3],
    terminal: bool,
    confine: &dyn Confine,
    reporter: OwnedFd,
) -> ! {
    let fail = |step: Step, errno: i32| -> ! {
        let [a, b, c, d] = errno.to_ne_bytes();
        let report = [step as u8, a, b, c, d];
        // SAFETY: plain system calls on a live buffer; `_exit` runs nothing of the parent's.
        unsafe {
            libc::write(reporter.as_raw_fd(), report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    };
    if let Err(errno) = set_up(standard, terminal) {
        fail(Step::Setup, errno);
    }
    let cwd = match work {
        Prepared::Execute { cwd, .. } => cwd.as_ptr(),
        Prepared::Task(_) => c"/".as_ptr(),
    };
    // SAFETY: a NUL-terminated path.
    if unsafe { libc::chdir(cwd) } < 0 {
        fail(Step::Directory, errno());
    }
    if let Err(error) = confine.apply() {
        fail(Step::Confine, error.raw_os_error().unwrap_or(libc::EPERM));
    }
    match work {
        Prepared::Execute { executable, .. } => fail(Step::Execute, executable.execute()),
        Prepared::Task(task) => {
            drop(reporter);
            let code = tree::perform(task);
            // SAFETY: ends the process at once, without running what the parent has registered.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Makes the calling child the leader of a session with these descriptors and nothing of its parent's; system calls only.
pub(super) fn set_up(standard: [RawFd; 3], terminal: bool) -> Result<(), i32> {
    let check = |result: i32| if result < 0 { Err(errno()) } else { Ok(()) };
    // SAFETY: system calls on plain numbers and a local signal set. Descriptors 0 to 2 are open in init, so the given
    // ones lie above and `dup2` cannot overwrite one that is still needed.
    unsafe {
        check(libc::setsid())?;
        if terminal {
            check(libc::ioctl(standard[0], libc::TIOCSCTTY, 0))?;
        }
        for (target, descriptor) in (0..).zip(standard) {
            check(libc::dup2(descriptor, target))?;
        }
        // Whatever the agent's parent left open is none of the program's business. Kernels before 5.11 do not know this;
        // then it rests with the parent, as everything opened here is closed on exec anyway.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // A program expects what execve(2) does not reset: SIGPIPE is ignored in Rust programs, SIGCHLD blocked in init.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))
    }
}

pub(super) fn errno() -> i32 {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Waits until the child executes its program (the pipe closes) or says why it does not.
fn read_failure(reports: OwnedFd) -> Option<(Step, i32)> {
    let mut report = [0; 5];
    File::from(reports).read_exact(&mut report).ok()?;
    let [step, errno @ ..] = report;
    Some((Step::of(step).unwrap_or(Step::Setup), i32::from_ne_bytes(errno)))
}

/// A new terminal of the machine's own `/dev/pts`: its master and its other end (ioctl_tty(2), TIOCGPTPEER).
fn open_terminal(size: WindowSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = match rustix::fs::open(
        "/dev/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) {
        Ok(master) => master,
        Err(_) => rustix::pty::openpt(flags)?,
    };
    rustix::pty::unlockpt(&master)?;
    let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size)?;
    Ok((master, peer))
}
