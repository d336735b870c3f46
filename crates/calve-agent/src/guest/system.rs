//! A system in a guest: its root is made, and the first process becomes its init.
//!
//! ```text
//!  /sysroot           tmpfs: the root of the system
//!  /sysroot/nix/store overlay: what the system writes (tmpfs) over the closure (an EROFS image or virtiofs, read-only)
//!  /sysroot/{proc,sys,dev,run}
//! ```
//! A NixOS with a systemd initrd leaves part of its work to `prepare-root`, run in the new root before its init starts.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use calve_wire::machine::ExitCause;
use rustix::mount::{MountFlags, mount_move};

use super::mounts::{self, attach, directory};
use super::parameters::{Mode, Parameters, Store};
use super::{network, port, power};
use crate::agent::transport::Transport;
use crate::agent::{self, Config};
use crate::enclosure::Enclosure;
use crate::plain;

/// Carries what was noted before the agent was started beside the system.
const NOTES_VARIABLE: &str = "CALVE_NOTES";

/// Time after which a system counts as begun whatever it lacks: one that is made otherwise must not hold up every command.
const BEGINS_MAX: Duration = Duration::from_secs(180);

const NEW_ROOT: &str = "/sysroot";
/// Mounted in the first root, which nothing can name once it is left.
const LOWER: &str = "/calve/lower";
const UPPER: &str = "/calve/upper";
/// What moves along; all of it is mounted already.
const MOVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Makes the system's root over its closure, leaves init and agent beside, and becomes the system's init.
pub(super) fn hand_over(
    parameters: &Parameters,
    toplevel: &str,
    mut notes: Vec<String>,
) -> anyhow::Result<Infallible> {
    let store = parameters.store.as_ref().context("calve.store= is missing: a system needs its closure")?;
    notes.extend(enter_root(store)?);
    network::name_host(&parameters.hostname)?;
    prepare(toplevel)?;
    start_beside(&notes)?;
    become_init(toplevel).with_context(|| format!("{toplevel}/init cannot be started"))
}

/// Runs as init and agent beside a system, in its root.
pub fn run_beside_system() -> anyhow::Result<()> {
    let parameters = Parameters::read()?;
    let notes = std::env::var(NOTES_VARIABLE).unwrap_or_default().lines().map(str::to_owned).collect();
    let init = plain::fork_init()?;
    agent::run(Config {
        token: parameters.token.parse()?,
        remaining: parameters.remaining_now(),
        transport: Box::new(|| Ok(Transport::Device { path: port::find()?, opened: None })),
        init,
        enclosure: Box::new(SystemGuest { notes, ready: Ready::of(&parameters) }),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    })?;
    Ok(())
}

/// A child that systemd leaves alone when it kills everything at its end, by its name's first character
/// (<https://systemd.io/ROOT_STORAGE_DAEMONS>): it must live until the machine does not.
fn start_beside(notes: &[String]) -> anyhow::Result<()> {
    let null = || File::options().read(true).write(true).open("/dev/null").map(Stdio::from);
    Command::new("/proc/self/exe")
        .arg0("@calve-agent")
        .arg("beside-system")
        .env_clear()
        .env(NOTES_VARIABLE, notes.join("\n"))
        .stdin(null()?)
        .stdout(null()?)
        .spawn()
        .map(drop)
        .context("the agent cannot be started beside the system")
}

/// The system's own processes are none of ours: they end with the machine, which systemd is asked to end in order.
struct SystemGuest {
    notes: Vec<String>,
    ready: Ready,
}

/// When a command finds what it expects of a system, which its own init makes while it begins: a profile, in which names are
/// found, terminals, and the socket on which systemd is asked.
struct Ready {
    /// The toplevel's init: a script that makes the place and becomes the system's real init.
    script: String,
    has_profile: bool,
    began: Instant,
    was: Cell<bool>,
}

impl Ready {
    fn of(parameters: &Parameters) -> Self {
        let toplevel = match &parameters.mode {
            Mode::System { toplevel } => toplevel.as_str(),
            Mode::Probe | Mode::Bare => "",
        };
        let has_profile = Path::new(toplevel).join("sw").exists();
        Self { script: format!("{toplevel}/init"), has_profile, began: Instant::now(), was: Cell::new(false) }
    }

    /// What was there once is not looked for again: how the system ends is its own business.
    fn is_now(&self) -> bool {
        let ready = self.was.get() || self.began.elapsed() > BEGINS_MAX || self.has_begun();
        self.was.set(ready);
        ready
    }

    fn has_begun(&self) -> bool {
        let there = |path: &str| Path::new(path).exists();
        let init = fs::read("/proc/1/cmdline").unwrap_or_default();
        let prepares = init.split(|byte| *byte == 0).skip(1).any(|word| word == self.script.as_bytes());
        let systemd = fs::read("/proc/1/comm").is_ok_and(|name| name.trim_ascii_end() == b"systemd");
        !prepares
            && (!self.has_profile || there("/run/current-system/sw/bin"))
            && (!systemd || (there("/run/systemd/private") && there("/dev/pts/ptmx")))
    }
}

impl Enclosure for SystemGuest {
    fn exit_cause(&self) -> ExitCause {
        ExitCause::Normal
    }

    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn is_ready_for_commands(&self) -> bool {
        self.ready.is_now()
    }

    /// `SIGRTMIN+4` is systemd's word for a power-off (`systemd(1)`, "Signals"), from whoever may send a signal.
    fn shut_down(&self) -> bool {
        // SAFETY: a plain system call.
        unsafe { libc::kill(1, libc::SIGRTMIN() + 4) == 0 }
    }

    fn on_end(&self) {
        power::end_machine();
    }

    /// The system is ending by itself and powers off in its own order; the guard watches the lease.
    fn on_interrupt(&self) {}
}

/// Makes the system's root over the closure, and enters it. Answers with what is less than it should be.
fn enter_root(store: &Store) -> anyhow::Result<Vec<String>> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    attach("tmpfs", NEW_ROOT, "tmpfs", MountFlags::empty(), "mode=0755")?;
    for dir in ["etc", "root", "var", "tmp", "bin", "usr", "home", "mnt"] {
        directory(Path::new(NEW_ROOT).join(dir))?;
    }
    rustix::fs::chmod(format!("{NEW_ROOT}/tmp"), rustix::fs::Mode::from_raw_mode(0o1777))?;
    attach("tmpfs", &format!("{NEW_ROOT}/run"), "tmpfs", safe, "mode=0755")?;
    let notes = writable_store(store)?;
    for mounted in MOVED {
        let target = format!("{NEW_ROOT}{mounted}");
        directory(&target)?;
        mount_move(mounted, &target).with_context(|| format!("{mounted} cannot be moved to the system"))?;
    }
    switch_root()?;
    Ok(notes)
}

/// Runs `prepare-root`, where the toplevel has one.
fn prepare(toplevel: &str) -> anyhow::Result<()> {
    let program = format!("{toplevel}/prepare-root");
    if !Path::new(&program).exists() {
        return Ok(());
    }
    let status = Command::new(&program)
        .env_clear()
        .env("IN_NIXOS_SYSTEMD_STAGE1", "true")
        .env("PATH", "/bin:/sbin")
        .status()
        .with_context(|| format!("{program} cannot be started"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

/// Becomes the system's init, with the arguments and environment that the kernel gave.
fn become_init(toplevel: &str) -> io::Result<Infallible> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    Err(Command::new(format!("{toplevel}/init")).args(arguments).exec())
}

fn writable_store(store: &Store) -> anyhow::Result<Vec<String>> {
    let target = format!("{NEW_ROOT}/nix/store");
    mounts::store(store, LOWER)?;
    attach("tmpfs", UPPER, "tmpfs", MountFlags::empty(), "mode=0755")?;
    for dir in ["upper", "work"] {
        directory(Path::new(UPPER).join(dir))?;
    }
    let options = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
    match attach("overlay", &target, "overlay", MountFlags::empty(), &options) {
        Ok(()) => Ok(Vec::new()),
        Err(error) => {
            mount_move(LOWER, &target).context("the store cannot be moved to the system")?;
            Ok(vec![format!("the system's store is read-only: {error:#}")])
        }
    }
}

/// Leaves the first root for the new one; what the first one held is removed, as it is all memory.
fn switch_root() -> anyhow::Result<()> {
    let first = fs::metadata("/")?.dev();
    remove_on(Path::new("/"), first);
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/").context("the system's root cannot take the first one's place")?;
    rustix::process::chroot(".").context("the system's root cannot be entered")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Removes what lies on the file system `device`; mount points and what is in use as one stay. Nothing depends on it.
fn remove_on(dir: &Path, device: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != device => {}
            Ok(meta) if meta.is_dir() => {
                remove_on(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}
