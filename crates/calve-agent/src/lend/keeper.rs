//! The keeper of a machine: starts its supervisor, waits for its end, and removes what the machine had on the host.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use calve_agent::confine::CORE_MAX_BYTES;
use calve_agent::sandbox::traces::start_ticks;
use calve_wire::agent::{KEEP_BYTE, READY_BYTE, SandboxFailure, SandboxFailureKind, SandboxInit};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::base::{Base, Machine};
use super::failed;

/// There once the machine is made.
pub const READY: &str = "ready";
/// Longest wait for the supervisor: it needs milliseconds, on a small host seconds.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Most bytes of its answer: a sentence and a hint.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// Writes down a process of the machine.
pub fn note(machine: &Machine, name: &str, pid: i32) -> io::Result<()> {
    let process = SandboxInit { pid, start_ticks: start_ticks(pid)? };
    fs::write(machine.dir.join(name), serde_json::to_vec(&process).expect("numbers"))
}

/// Starts the keeper, which holds the lock from here on, and returns once the machine is made, or why it is not; then nothing of
/// it is left.
pub fn keep(base: &Base, machine: &Machine, _lock: &File) -> Result<(), SandboxFailure> {
    let (told, tell) = UnixStream::pair().map_err(failed("no socket pair for the keeper"))?;
    // SAFETY: this process has one thread, so the child has all of its memory in a consistent state.
    match unsafe { libc::fork() } {
        -1 => return Err(failed("the keeper cannot be forked")(io::Error::last_os_error())),
        0 => {
            drop(told);
            let code = i32::from(run(base, machine, tell).is_err());
            // SAFETY: ends the child at once, without running what the parent has registered.
            unsafe { libc::_exit(code) }
        }
        _ => drop(tell),
    }
    let mut answer = Vec::new();
    (&told).read_to_end(&mut answer).map_err(failed("the keeper cannot be heard"))?;
    if answer == [READY_BYTE] {
        return Ok(());
    }
    Err(serde_json::from_slice(&answer).unwrap_or_else(|_| SandboxFailure {
        kind: SandboxFailureKind::Failed,
        message: "the machine's keeper ended and did not say why".to_owned(),
        hint: None,
    }))
}

/// The keeper's life.
fn run(base: &Base, machine: &Machine, tell: UnixStream) -> io::Result<()> {
    // The server's connection ends with whoever has its other end.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let log = File::create(machine.dir.join("agent.log"))?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    note(machine, "keeper.json", std::process::id().cast_signed())?;
    // `sudo` leaves 0, with which the host's handler of core dumps would get those of programs. Who may not raise it, was not
    // left that by it.
    let core = Some(CORE_MAX_BYTES);
    let _ = setrlimit(Resource::Core, Rlimit { current: core, maximum: core });
    match start(machine) {
        Ok(mut supervisor) => {
            // Who asked may be gone: the lease goes on, and is the machine's end.
            let _ = (&tell).write_all(&[READY_BYTE]);
            drop(tell);
            supervisor.wait()?;
            clear(base, machine)
        }
        Err(failure) => {
            let cleared = clear(base, machine);
            let _ = (&tell).write_all(&serde_json::to_vec(&failure).expect("sentences"));
            cleared
        }
    }
}

fn start(machine: &Machine) -> Result<Child, SandboxFailure> {
    let (ours, theirs) = UnixStream::pair().map_err(failed("no socket pair for the supervisor"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("calve-agent")
        .args(["sandbox", "--ready-fd", "0", "--run-dir"])
        .arg(&machine.dir)
        .env_clear();
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut child = command.spawn().map_err(failed("the machine's supervisor cannot be started"))?;
    drop(command);
    let heard = note(machine, "supervisor.json", child.id().cast_signed())
        .map_err(failed("the machine's directory cannot be written"))
        .and_then(|()| hear(&ours))
        .and_then(|()| {
            File::create(machine.dir.join(READY))
                .and_then(|_| (&ours).write_all(&[KEEP_BYTE]))
                .map_err(failed("the machine's supervisor does not listen"))
        });
    if heard.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    heard.map(|()| child)
}

/// Waits until the supervisor is ready, or says why not.
fn hear(supervisor: &UnixStream) -> Result<(), SandboxFailure> {
    let unheard = || failed("the machine's supervisor cannot be heard");
    supervisor.set_read_timeout(Some(READY_DEADLINE)).map_err(unheard())?;
    let mut answer = Vec::new();
    let mut first = [0];
    (&*supervisor).read_exact(&mut first).map_err(unheard())?;
    if first == [READY_BYTE] {
        return Ok(());
    }
    answer.extend(first);
    supervisor.take(ANSWER_MAX_BYTES).read_to_end(&mut answer).map_err(unheard())?;
    Err(serde_json::from_slice(&answer)
        .unwrap_or_else(|_| failed("the machine's supervisor ended")(io::ErrorKind::InvalidData.into())))
}

/// Removes what the machine had.
fn clear(base: &Base, machine: &Machine) -> io::Result<()> {
    let other = |failure: SandboxFailure| io::Error::other(failure.message);
    let counting = base.count().map_err(other)?;
    super::end::clear(machine).map_err(other)?;
    base.vacate(counting);
    Ok(())
}
