//! Starts the supervisor of one machine and hears whether there is a machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use calve_store::ClosurePath;
use calve_wire::agent::{
    AGENT_PROTOCOL_VERSION, KEEP_BYTE, READY_BYTE, SandboxFailure, SandboxFailureKind, SandboxSpec,
    StoreMount,
};
use calve_wire::machine::Workload;

use super::failed;
use crate::driver::{DriverError, DriverErrorKind, Order};
use crate::run_dir::{Meta, Process, RunDirs};

/// Longest wait for a supervisor: it needs milliseconds, on an overloaded host seconds.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of a supervisor's answer: a sentence and a hint.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;
/// Bytes at the end of the supervisor's own output that are searched for its last line.
const LAST_WORDS_BYTES: usize = 4096;

/// Makes the run directory and the machine, by a supervisor that stands by or a new one; gives it. On failure it is dead, but
/// not what it left.
pub fn start(
    dirs: &RunDirs,
    agent_binary: &Path,
    standby: Option<Supervisor>,
    order: &Order,
) -> Result<Child, DriverError> {
    let spec = spec(order)?;
    let dir = dirs.create(order.id).map_err(unwritable)?;
    fs::write(dir.join("sandbox.json"), serde_json::to_vec(&spec).expect("names and numbers"))
        .map_err(unwritable)?;
    let log = File::create(dir.join("agent.log")).map_err(unwritable)?;
    let mut supervisor = match standby {
        Some(standby) => standby.assign(&dir)?,
        None => Supervisor::of(&dir, agent_binary, &log)?,
    };
    if let Some(process) = supervisor.process {
        dirs.stage_meta(order.id, Meta { attempt: order.attempt, process }).map_err(unwritable)?;
    }
    hear(&supervisor.socket, &dir)?;
    // One that had ended by then cannot have got ready.
    dirs.commit_meta(order.id).map_err(unwritable)?;
    (&supervisor.socket).write_all(&[KEEP_BYTE]).map_err(deaf)?;
    Ok(supervisor.keep())
}

fn unwritable(error: io::Error) -> DriverError {
    failed("the machine's run directory cannot be written").caused_by(error)
}

fn deaf(error: io::Error) -> DriverError {
    failed("the machine's supervisor does not listen").caused_by(error)
}

fn spec(order: &Order) -> Result<SandboxSpec, DriverError> {
    if let Workload::System { .. } = order.spec.workload {
        let message = "a sandbox has no kernel of its own to boot a system with";
        return Err(DriverError::new(DriverErrorKind::Unusable, message).hint("use --driver qemu"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(SandboxSpec {
        version: AGENT_PROTOCOL_VERSION,
        machine_id: order.id.to_string(),
        hostname: order.name.to_string(),
        token: order.token.clone(),
        remaining: order.remaining,
        written_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        store_paths: order.closure.paths.iter().map(mount).collect::<Result<_, _>>()?,
        limits: order.spec.limits,
        network: order.spec.network,
    })
}

fn mount(path: &ClosurePath) -> Result<StoreMount, DriverError> {
    let source = path.host_path.to_str().ok_or_else(|| {
        let message = format!("{} lies in a directory whose name is no UTF-8", path.path);
        DriverError::new(DriverErrorKind::Unusable, message)
            .hint("move calve's data to another directory (CALVE_HOME)")
    })?;
    Ok(StoreMount { source: source.to_owned(), base_name: path.path.base_name().to_owned() })
}

/// Waits until the supervisor is ready, or says why not.
fn hear(supervisor: &UnixStream, dir: &Path) -> Result<(), DriverError> {
    let unheard = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => failed("the machine's supervisor was not ready in 30 s"),
        _ => failed("the machine's supervisor cannot be heard").caused_by(error),
    };
    supervisor.set_read_timeout(Some(READY_DEADLINE)).map_err(unheard)?;
    let mut answer = vec![0];
    let read = loop {
        match (&mut &*supervisor).read(&mut answer) {
            // Ends of other machines' supervisors are signals to this process.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read.map_err(unheard)?,
        }
    };
    if read == 1 && answer[0] == READY_BYTE {
        return Ok(());
    }
    answer.truncate(read);
    supervisor.take(ANSWER_MAX_BYTES).read_to_end(&mut answer).map_err(unheard)?;
    match serde_json::from_slice::<SandboxFailure>(&answer) {
        Ok(failure) => Err(refused(failure)),
        Err(_) => Err(failed(&format!("the machine's supervisor ended: {}", last_words(dir)))),
    }
}

fn refused(failure: SandboxFailure) -> DriverError {
    let kind = match failure.kind {
        SandboxFailureKind::Unusable => DriverErrorKind::Unusable,
        SandboxFailureKind::NoSpace => DriverErrorKind::NoSpace,
        SandboxFailureKind::Failed => DriverErrorKind::Failed,
    };
    let error = DriverError::new(kind, failure.message);
    match failure.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The last line that the supervisor wrote.
fn last_words(dir: &Path) -> String {
    let log = fs::read(dir.join("agent.log")).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned();
    let line = tail.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or_else(|| "it did not say why".to_owned(), |line| line.trim().to_owned())
}

/// A supervisor that is killed unless it is kept.
#[derive(Debug)]
pub struct Supervisor {
    child: Option<Child>,
    process: Option<Process>,
    socket: UnixStream,
}

impl Supervisor {
    /// That of the machine with this run directory.
    fn of(dir: &Path, agent_binary: &Path, log: &File) -> Result<Self, DriverError> {
        let arguments = [OsStr::new("sandbox"), "--ready-fd".as_ref(), "0".as_ref(), "--run-dir".as_ref()];
        let to_log = || log.try_clone().map(Stdio::from).map_err(unwritable);
        let arguments = arguments.into_iter().chain([dir.as_os_str()]);
        Self::spawn(agent_binary, arguments, [to_log()?, to_log()?])
    }

    /// One that waits for a machine, whose run directory's path has at most so many bytes.
    pub fn standing_by(agent_binary: &Path, path_max_bytes: usize) -> Result<Self, DriverError> {
        let room = "-".repeat(path_max_bytes);
        let arguments = ["standby", "--ready-fd", "0", "--room", &room].map(OsStr::new);
        Self::spawn(agent_binary, arguments, [Stdio::null(), Stdio::null()])
    }

    /// Its standard input is the socket on which it answers: descriptors with other numbers would be inherited by whatever
    /// else this process starts at the same moment. Nothing is asked for that would take a fork(2) of this whole process in
    /// place of posix_spawn(3), such as another directory: the supervisor goes to `/` by itself.
    fn spawn<'a>(
        agent_binary: &Path,
        arguments: impl IntoIterator<Item = &'a OsStr>,
        [stdout, stderr]: [Stdio; 2],
    ) -> Result<Self, DriverError> {
        let (socket, theirs) =
            UnixStream::pair().map_err(|e| failed("no socket pair for the supervisor").caused_by(e))?;
        let stdin = Stdio::from(OwnedFd::from(theirs));
        let mut command = Command::new(agent_binary);
        command.args(arguments).env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => DriverErrorKind::Unusable,
                _ => DriverErrorKind::Failed,
            };
            let message = format!("the agent {} cannot be started: {error}", agent_binary.display());
            DriverError::new(kind, message).hint("calve-agent lies beside calve, or CALVE_AGENT names it")
        })?;
        let process = Process::of(child.id().cast_signed());
        Ok(Self { child: Some(child), process, socket })
    }

    /// Tells the one that stands by whose supervisor it is.
    fn assign(self, dir: &Path) -> Result<Self, DriverError> {
        let path = dir.as_os_str().as_bytes();
        let length =
            u16::try_from(path.len()).expect("a directory's path that was made is shorter than 4096");
        let message = [&length.to_le_bytes(), path].concat();
        (&self.socket).write_all(&message).map_err(deaf)?;
        Ok(self)
    }

    /// Whether it has ended; then it is reaped.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    fn keep(&mut self) -> Child {
        self.child.take().expect("it is kept once")
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
