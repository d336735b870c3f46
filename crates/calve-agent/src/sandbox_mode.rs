//! `calve-agent sandbox`: the agent outside, on the host, and init inside of a sandbox that it makes first.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use calve_agent::confine::Confinement;
use calve_agent::sandbox::ready::{Driver, Hold};
use calve_agent::sandbox::standby::Standby;
use calve_agent::sandbox::title::Title;
use calve_agent::sandbox::{self, Sandbox};
use calve_wire::agent::{SandboxFailure, SandboxFailureKind};
use calve_wire::machine::ExitCause;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::agent::transport::{Transport, listen};
use crate::agent::{self, Config};
use crate::confine_api::Confine;
use crate::enclosure::{Enclosure, FilesInMemory};
use crate::init::{self, packet};
use crate::plain::{read_spec, remaining_now};

/// Runs the machine of a run directory to its end: makes the sandbox, tells the driver, and supervises.
pub fn run(run_dir: PathBuf, ready: OwnedFd) -> anyhow::Result<()> {
    let run_dir = std::path::absolute(run_dir)?;
    leave_starter()?;
    supervise(run_dir, ready, None)
}

/// Gets ready to supervise a machine, and does so with the first one that the driver names; ends with the driver before.
pub fn stand_by(ready: OwnedFd) -> anyhow::Result<()> {
    leave_starter()?;
    let title = Title::of_this_process();
    let (here, there) = packet::pair()?;
    // Why there is none is said by the sandbox that is made in its place.
    let standby = Standby::prepare(title, |confinement| serve(there, confinement)).ok().flatten();
    let driver = UnixStream::from(ready);
    let mut spare = standby.map(|standby| Spare { standby, link: here });
    let Some(run_dir) = hear_run_dir(&driver, &mut spare)? else { return Ok(()) };
    let log = File::options().append(true).open(run_dir.join("agent.log"))?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    if let Some(title) = title {
        title.set(&run_dir);
    }
    supervise(run_dir, driver.into(), spare)
}

/// A session of its own, so that no terminal's end reaches it (who leads a group already has one), and no directory that
/// somebody may want to unmount.
fn leave_starter() -> anyhow::Result<()> {
    let _ = rustix::process::setsid();
    Ok(std::env::set_current_dir("/")?)
}

/// A sandbox in standby, and the agent's end of the link with its init.
struct Spare {
    standby: Standby,
    link: OwnedFd,
}

/// Waits for the machine's run directory: the length of its path, then the path. None where the driver wants no machine any
/// more. A spare that gets unfit meanwhile goes at once, as it may hold what the host wants to unmount.
fn hear_run_dir(driver: &UnixStream, spare: &mut Option<Spare>) -> io::Result<Option<PathBuf>> {
    loop {
        let mut polled = vec![PollFd::new(driver, PollFlags::IN)];
        polled.extend(spare.iter().flat_map(|spare| spare.standby.watch()));
        match poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if !polled[0].revents().is_empty() {
            break;
        }
        *spare = None;
    }
    let mut length = [0; 2];
    match (&mut &*driver).read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut path = vec![0; usize::from(u16::from_le_bytes(length))];
    (&mut &*driver).read_exact(&mut path)?;
    Ok(Some(PathBuf::from(OsString::from_vec(path))))
}

fn supervise(run_dir: PathBuf, ready: OwnedFd, spare: Option<Spare>) -> anyhow::Result<()> {
    let hold = Hold::on(&run_dir)?;
    let driver = Rc::new(Cell::new(Some(Driver::new(ready, &hold)?)));
    let supervised = make(&run_dir, driver.clone(), spare).and_then(|(walls, config)| {
        agent::run(config).map_err(|error| walls.refusal().unwrap_or_else(|| failure(&error.into())))
    });
    let Err(error) = supervised else { return Ok(()) };
    // Without it, the driver has been told that the machine is made, and this is a later end.
    if let Some(driver) = driver.take() {
        driver.fail(&error);
    }
    Err(error.into())
}

/// Prints what this host allows, as the JSON of a list of checks.
pub fn probe() -> anyhow::Result<()> {
    let dir = sandbox::probe::scratch_dir()?;
    let checks = sandbox::probe::probe(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    println!("{}", serde_json::to_string(&checks)?);
    Ok(())
}

fn make(
    run_dir: &Path,
    driver: Rc<Cell<Option<Driver>>>,
    spare: Option<Spare>,
) -> Result<(Rc<Walls>, Config), SandboxFailure> {
    let failed = |error: anyhow::Error| failure(&error);
    let spec = read_spec(run_dir).map_err(failed)?;
    let token = spec.token.parse().map_err(|e| failed(anyhow::Error::new(e)))?;
    let assigned =
        spare.and_then(|Spare { standby, link }| Some((standby.assign(&spec, run_dir).ok()?, link)));
    let (sandbox, init) = match assigned {
        Some((assigned, link)) => (assigned?, link),
        None => {
            let (here, there) = packet::pair().map_err(|e| failed(e.into()))?;
            (sandbox::launch(&spec, run_dir, |confinement| serve(there, confinement))?, here)
        }
    };
    let socket = run_dir.join("agent.sock");
    let walls = Rc::new(Walls::new(sandbox));
    let config = Config {
        token,
        remaining: remaining_now(&spec),
        transport: Box::new(move || Ok(Transport::Listen(listen::bind(&socket)?))),
        init,
        enclosure: Box::new(walls.clone()),
        announce: Box::new(move || {
            let Some(mut told) = driver.take() else { return Ok(()) };
            told.announce()
        }),
        run_dir: Some(run_dir.to_owned()),
        begun: None,
    };
    Ok((walls, config))
}

fn failure(error: &anyhow::Error) -> SandboxFailure {
    let full = error
        .root_cause()
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::StorageFull);
    let kind = if full { SandboxFailureKind::NoSpace } else { SandboxFailureKind::Failed };
    SandboxFailure { kind, message: format!("{error:#}"), hint: None }
}

/// Init's life inside.
fn serve(link: OwnedFd, confinement: Confinement) -> Infallible {
    let served = keep_only(&link).and_then(|()| {
        init::run(link, &init::Options { confine: &Confined(confinement), spare: None, first: None })
    });
    // SAFETY: ends the process at once, without running what the agent has registered.
    unsafe { libc::_exit(i32::from(served.is_err())) }
}

/// Closes the agent's descriptors, which init has as its copy: the other end of its own link among them, whose end it
/// would never see.
fn keep_only(link: &OwnedFd) -> io::Result<()> {
    let kept = link.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        // SAFETY: whatever owns these descriptors in this process is not used again: `serve` never returns.
        if first <= last && unsafe { libc::close_range(first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

struct Confined(Confinement);

impl Confine for Confined {
    fn prepare(&self) -> io::Result<()> {
        self.0.settle()
    }

    fn apply(&self) -> io::Result<()> {
        self.0.apply()
    }
}

/// The sandbox as the agent sees it.
struct Walls {
    sandbox: RefCell<Option<Sandbox>>,
    entered: OnceCell<Result<Vec<String>, SandboxFailure>>,
    oom_kills_seen: Cell<u64>,
    pids_limit_hits_seen: Cell<u64>,
}

impl Walls {
    fn new(sandbox: Sandbox) -> Self {
        let entered = OnceCell::new();
        Self {
            sandbox: Some(sandbox).into(),
            entered,
            oom_kills_seen: 0.into(),
            pids_limit_hits_seen: 0.into(),
        }
    }

    /// Notes for people, or why init never began. Waits for that; whoever asks knows that init has begun or ended.
    fn entered(&self) -> &Result<Vec<String>, SandboxFailure> {
        self.entered.get_or_init(|| {
            let mut sandbox = self.sandbox.borrow_mut();
            let Some(sandbox) = sandbox.as_mut() else { return Ok(Vec::new()) };
            sandbox.entered().map(|()| sandbox.notes().to_vec())
        })
    }

    fn refusal(&self) -> Option<SandboxFailure> {
        self.entered().as_ref().err().cloned()
    }
}

impl Enclosure for Rc<Walls> {
    fn exit_cause(&self) -> ExitCause {
        let sandbox = self.sandbox.borrow();
        let Some(sandbox) = sandbox.as_ref() else { return ExitCause::Normal };
        let (kills, hits) = (sandbox.oom_kills(), sandbox.pids_limit_hits());
        if kills > self.oom_kills_seen.replace(kills) {
            return ExitCause::OutOfMemory;
        }
        if hits > self.pids_limit_hits_seen.replace(hits) {
            return ExitCause::Limit;
        }
        ExitCause::Normal
    }

    fn files_in_memory(&self) -> Option<FilesInMemory> {
        let (bytes, limit_bytes) = self.sandbox.borrow().as_ref()?.files_in_memory()?;
        Some(FilesInMemory { bytes, limit_bytes })
    }

    /// Init can kill everything but itself, and must live on to say that it is done.
    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        self.entered().clone().unwrap_or_default()
    }

    fn shut_down(&self) -> bool {
        false
    }

    fn on_end(&self) {
        let removed = self.sandbox.take().map(Sandbox::remove);
        if let Some(Err(error)) = removed {
            eprintln!("calve-agent: the machine's cgroups cannot be removed: {error}");
        }
    }
}
