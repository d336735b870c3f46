//! The daemon that serves a closure live to a guest (virtiofsd): a child of the guard in a mount namespace of its own,
//! where one directory holds the closure's store paths, read-only, and the daemon locks itself into that.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use calve_agent::sandbox::mounts::{attach, new, restrict_by_path, restrict_private, view_of};
use calve_wire::agent::StoreMount;
use calve_wire::guard::{LIVE_STORE_DIR, LIVE_STORE_FILE, LIVE_STORE_SOCKET, LiveStore};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, mount_change};
use rustix::process::{Resource, Rlimit, getegid, geteuid, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};

use super::child::Child;

/// Most files that the daemon may hold open: what virtiofsd takes for itself where it may, and Linux allows by default.
const OPEN_FILES_MAX: u64 = 1_000_000;
/// What the guest cannot do to the host's store, whatever the daemon lets it.
const HARMLESS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Starts the daemon in the working directory, where the driver wants one; it accepts once it is ready, and whoever
/// connects before that waits.
pub(super) fn start() -> anyhow::Result<Option<Child>> {
    if !Path::new(LIVE_STORE_FILE).exists() {
        return Ok(None);
    }
    let socket = UnixListener::bind(LIVE_STORE_SOCKET).context("the live store's socket cannot be made")?;
    fs::create_dir(LIVE_STORE_DIR).context("the live store's directory cannot be made")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("live-store").stdin(OwnedFd::from(socket));
    Child::start(command, "the daemon of the live store").map(Some)
}

/// Becomes the daemon; runs in the run directory, before there is a second thread.
pub(super) fn run() -> anyhow::Result<Infallible> {
    let json = fs::read(LIVE_STORE_FILE).context("what the live store holds cannot be read")?;
    let store: LiveStore =
        serde_json::from_slice(&json).context("what the live store holds does not parse")?;
    let (program, arguments) = store.argv.split_first().context("no daemon is named")?;
    raise_open_files();
    enter_namespaces().context("the live store gets no namespaces of its own")?;
    show(&store.paths)?;
    keep_groups().context("the live store's system calls cannot be filtered")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("{program} cannot be started"))
}

/// The daemon holds each file open that the guest knows of. Only the host's root may go beyond what is allowed.
fn raise_open_files() {
    let limit = |most| Rlimit { current: most, maximum: most };
    if setrlimit(Resource::Nofile, limit(Some(OPEN_FILES_MAX))).is_err() {
        // With the old limit, a guest that knows of more files than that gets errors.
        let _ = setrlimit(Resource::Nofile, limit(getrlimit(Resource::Nofile).maximum));
    }
}

/// Root of a user namespace of its own where the kernel allows it, else root as it is.
fn enter_namespaces() -> anyhow::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let others = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: this process has one thread, and no descriptor table is unshared.
    match unsafe { unshare_unsafe(others | UnshareFlags::NEWUSER) } {
        Ok(()) => {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
            fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        }
        // SAFETY: as above.
        Err(_) if user == 0 => unsafe { unshare_unsafe(others) }?,
        Err(error) => return Err(error.into()),
    }
    // Nothing that is mounted from here on reaches the host.
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Puts the closure into the directory that the daemon serves.
fn show(paths: &[StoreMount]) -> anyhow::Result<()> {
    let failed = || format!("{LIVE_STORE_DIR} cannot be mounted");
    let tree = new("tmpfs", &[("mode", "0755")], MountAttrFlags::empty()).with_context(failed)?;
    attach(tree.as_fd(), CWD, LIVE_STORE_DIR).with_context(failed)?;
    let store =
        openat(CWD, LIVE_STORE_DIR, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for path in paths {
        show_one(path).with_context(|| format!("{} cannot be shown to the guest", path.source))?;
    }
    match restrict_private(store.as_fd(), HARMLESS) {
        // Before Linux 5.12 each mount by itself.
        Err(Errno::NOSYS) => {
            for path in paths.iter().filter(|path| !Path::new(&path.source).is_symlink()) {
                let mount = openat(&store, &*path.base_name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                restrict_by_path(mount.as_fd(), HARMLESS)?;
            }
            restrict_by_path(store.as_fd(), HARMLESS).with_context(failed)
        }
        restricted => restricted.with_context(failed),
    }
}

fn show_one(path: &StoreMount) -> anyhow::Result<()> {
    let (source, name) = (Path::new(&path.source), &*path.base_name);
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        bail!("{name:?} is no name in a store");
    }
    let place = Path::new(LIVE_STORE_DIR).join(name);
    let kind = fs::symlink_metadata(source)?.file_type();
    if kind.is_symlink() {
        return Ok(symlink(fs::read_link(source)?, place)?);
    }
    if kind.is_dir() {
        fs::create_dir(&place)?;
    } else {
        File::create(&place)?;
    }
    let place =
        place.into_os_string().into_string().map_err(|name| anyhow::anyhow!("{name:?} is not UTF-8"))?;
    Ok(attach(view_of(source)?.as_fd(), CWD, &place)?)
}

/// Daemons leave their supplementary groups, or end; who is not root may not leave them in a user namespace
/// (user_namespaces(7), "setgroups"). With them it may read what the user may read, of the closure only: let it believe.
fn keep_groups() -> anyhow::Result<()> {
    let rules = [(libc::SYS_setgroups, Vec::new())].into_iter().collect();
    let (others, groups) = (SeccompAction::Allow, SeccompAction::Errno(0));
    let filter = SeccompFilter::new(rules, others, groups, TargetArch::x86_64)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}
