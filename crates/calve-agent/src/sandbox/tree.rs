//! The tree that the sandbox sees.
//!
//! ```text
//!  /            small, read-only; /etc and the like are plain files in it
//!  /nix/store   the closure's store paths, each a read-only view of its place on the host
//!  /tmp /work /var /run /root /dev/shm   writable, all in one file system, whose limit is that of the memory
//!  /proc        of the sandbox's own processes
//!  /dev         six devices of the host and terminals of its own
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use calve_wire::agent::{SandboxSpec, StoreMount};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, readlinkat, stat, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use serde::{Deserialize, Serialize};

use super::etc::Files;
use super::ids::Map;
use super::mounts::{attach, new, reconfigure, restrict, restrict_by_path, restrict_private, view, view_of};
use super::{SandboxError, SandboxFailureKind, failed};

/// Devices of the host that are the same for everybody.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links in `/dev`.
const DEV_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// Directories of the root that are made.
const DIRS: [&str; 13] = [
    "nix",
    "nix/store",
    "etc",
    "proc",
    "dev",
    "dev/pts",
    "dev/shm",
    "tmp",
    "work",
    "var",
    "run",
    "root",
    "bin",
];
/// Writable directories: where, the name in their file system, and their permissions.
const WRITABLE: [(&str, &str, u32); 6] = [
    ("tmp", "tmp", 0o1777),
    ("work", "work", 0o755),
    ("var", "var", 0o755),
    ("run", "run", 0o755),
    ("root", "root", 0o700),
    ("dev/shm", "shm", 0o1777),
];
/// Most mounts that may lie on each other at the host's root: one everywhere, two where it was overlaid.
const ROOT_LAYERS_MAX: usize = 8;
/// Directories below `/var`.
const VAR_DIRS: [(&str, u32); 5] =
    [("var/tmp", 0o1777), ("var/lib", 0o755), ("var/log", 0o755), ("var/cache", 0o755), ("var/empty", 0o555)];
/// Tools that a machine without a closure has; BusyBox is each of them by its name.
const TOOLS: &str = "sh ash cat chmod chown cp cut date dd df dirname du echo env expr false find free grep gunzip gzip head \
    hostname id ifconfig ip kill less ln ls md5sum mkdir mkfifo mktemp more mv nc nproc od ping printf ps pwd readlink \
    realpath rm rmdir sed seq sha256sum sleep sort stat stty sync tail tar tee test time timeout top touch tr true tty \
    uname uniq uptime vi wc wget which whoami xargs yes";

const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NO_SUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NO_DEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
/// What a store path, and the root itself, does without.
const OF_STORE: MountAttrFlags = READ_ONLY.union(NO_SUID).union(NO_DEV);

/// The machine's own part of the tree: what of the host comes into it, opened while that may still be read.
pub struct Sources<'a> {
    store: Vec<Source<'a>>,
    busybox: Option<OwnedFd>,
}

struct Source<'a> {
    mount: &'a StoreMount,
    kind: Kind,
    /// Where it will not be reachable any more once init has become another user.
    opened: Option<OwnedFd>,
}

/// What lies at a store path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else that can be mounted.
    File,
    /// A symbolic link, and where it leads.
    Link(CString),
}

impl Kind {
    /// Whether it comes as a mount, not as a copy.
    pub fn is_mounted(&self) -> bool {
        !matches!(self, Self::Link(_))
    }
}

impl<'a> Sources<'a> {
    /// Those of a machine, opened here where `keep` says so, else when they are attached.
    pub fn open(spec: &'a SandboxSpec, files: &Files, keep: bool) -> Result<Self, SandboxError> {
        let store = spec
            .store_paths
            .iter()
            .map(|mount| Source::open(mount, keep).map_err(|e| unreadable(mount, e)))
            .collect::<Result<_, _>>()?;
        let busybox = files.busybox.as_deref().and_then(|path| view_of(path).ok());
        Ok(Self { store, busybox })
    }

    /// Takes them apart for the way to another process: their kinds, then whether there is a BusyBox, and the descriptors of
    /// all that is mounted, in order.
    pub fn into_parts(self) -> (Vec<Kind>, bool, Vec<OwnedFd>) {
        let has_busybox = self.busybox.is_some();
        let (kinds, opened): (Vec<_>, Vec<_>) =
            self.store.into_iter().map(|source| (source.kind, source.opened)).unzip();
        (kinds, has_busybox, opened.into_iter().flatten().chain(self.busybox).collect())
    }

    /// Puts together what [`Sources::into_parts`] has taken apart; none where the descriptors are not those.
    pub fn from_parts(
        spec: &'a SandboxSpec,
        kinds: Vec<Kind>,
        has_busybox: bool,
        opened: Vec<OwnedFd>,
    ) -> Option<Self> {
        let mounted = kinds.iter().filter(|kind| kind.is_mounted()).count();
        if kinds.len() != spec.store_paths.len() || opened.len() != mounted + usize::from(has_busybox) {
            return None;
        }
        let mut opened = opened.into_iter();
        let store = spec.store_paths.iter().zip(kinds).map(|(mount, kind)| {
            let opened = if kind.is_mounted() { opened.next() } else { None };
            Source { mount, kind, opened }
        });
        let store = store.collect();
        Some(Self { store, busybox: opened.next() })
    }
}

impl<'a> Source<'a> {
    fn open(mount: &'a StoreMount, keep: bool) -> Result<Self, Errno> {
        let path = Path::new(&mount.source);
        let kind = match FileType::from_raw_mode(statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link(readlinkat(CWD, path, Vec::new())?),
            _ => Kind::File,
        };
        let opened = (keep && kind.is_mounted()).then(|| view_of(path)).transpose()?;
        Ok(Self { mount, kind, opened })
    }

    fn attach(self, store: BorrowedFd) -> Result<(), Errno> {
        let name = self.mount.base_name.as_str();
        match &self.kind {
            Kind::Link(target) => return symlinkat(target, store, name),
            Kind::Directory => mkdirat(store, name, Mode::from_raw_mode(0o555))?,
            Kind::File => make_file(store, name, b"")?,
        }
        let mount = match self.opened {
            Some(mount) => mount,
            None => view_of(Path::new(&self.mount.source))?,
        };
        place(mount.as_fd(), store, name)
    }
}

/// The devices of the host, opened while init may still do that.
pub struct Devices(Vec<(&'static str, OwnedFd)>);

impl Devices {
    /// Opens them.
    pub fn open() -> Result<Self, SandboxError> {
        let device = |name: &'static str| {
            let path = PathBuf::from("/dev").join(name);
            view_of(&path).map(|mount| (name, mount)).map_err(|e| no_mount(&path.to_string_lossy(), e))
        };
        DEVICES.into_iter().map(device).collect::<Result<_, _>>().map(Self)
    }
}

/// A tree that holds everything but what one machine alone has.
pub struct Tree {
    root: OwnedFd,
    /// Behind all writable directories.
    writable: OwnedFd,
    entered: bool,
    notes: Vec<String>,
}

impl Tree {
    /// Lays it over the host's, which stays in reach.
    pub fn lay(devices: Devices, map: Map) -> Result<Self, SandboxError> {
        let step = |what: &'static str| move |error: Errno| no_mount(what, error);
        // Mounts are copied into a new namespace as they are; none of what follows may reach the host's.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(step("/"))?;
        let tree = new("tmpfs", &[("mode", "0755")], MountAttrFlags::empty()).map_err(step("/"))?;
        attach(tree.as_fd(), CWD, "/").map_err(step("/"))?;
        let root = tree.as_fd();
        for dir in DIRS {
            mkdirat(root, dir, Mode::from_raw_mode(0o755)).map_err(step("/"))?;
        }
        for (target, name) in DEV_LINKS {
            symlinkat(target, root, format!("dev/{name}")).map_err(step("/dev"))?;
        }
        for (name, device) in devices.0 {
            make_file(root, &format!("dev/{name}"), b"").map_err(step("/dev"))?;
            // Read-only does not keep a device from being written to, but its owner and permissions from being changed.
            attach(device.as_fd(), root, &format!("dev/{name}")).map_err(step("/dev"))?;
            restrict_one(device.as_fd(), READ_ONLY | NO_SUID | NO_EXEC).map_err(step("/dev"))?;
        }
        let (writable, views) = writable().map_err(step("/tmp"))?;
        for ((place, _, _), mount) in WRITABLE.iter().zip(views) {
            attach(mount.as_fd(), root, place).map_err(step(place))?;
        }
        let terminals = new("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], NO_SUID | NO_EXEC);
        attach(terminals.map_err(step("/dev/pts"))?.as_fd(), root, "dev/pts").map_err(step("/dev/pts"))?;
        let notes = attach_proc(root, map);
        Ok(Self { root: tree, writable, entered: false, notes })
    }

    /// Its root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Something to tell people.
    pub fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// Makes it the root. The host's comes to lie on it (pivot_root(2), "pivot_root(".", ".")"), where paths from `/` begin
    /// below it, but `/..` leads into it: [`drop_host`] must come before any program.
    pub fn enter(&mut self) -> Result<(), Errno> {
        if self.entered {
            return Ok(());
        }
        fchdir(&self.root)?;
        pivot_root(".", ".")?;
        self.entered = true;
        chdir("/")
    }

    /// Adds what the machine alone has, takes away writing to it, and enters it. Gives notes for people.
    pub fn fill(
        mut self,
        spec: &SandboxSpec,
        files: &Files,
        sources: Sources,
    ) -> Result<Vec<String>, SandboxError> {
        let step = |what: &'static str| move |error: Errno| no_mount(what, error);
        let root = self.root.as_fd();
        symlinkat("/proc/self/mounts", root, "etc/mtab").map_err(step("/etc"))?;
        for (name, text) in &files.etc {
            make_file(root, &format!("etc/{name}"), text).map_err(step("/etc"))?;
        }
        link_tools(root, sources.busybox).map_err(step("/bin"))?;
        attach_store(root, sources.store)?;
        restrict_one(root, OF_STORE).map_err(step("/"))?;
        if let Some(bytes) = spec.limits.memory_bytes {
            // Without a limit the kernel takes half of the memory.
            reconfigure(self.writable.as_fd(), "size", &bytes.to_string()).map_err(step("/tmp"))?;
        }
        self.enter().map_err(step("/"))?;
        Ok(self.notes)
    }
}

/// The file system behind all writable directories, and a view for each of them.
fn writable() -> Result<(OwnedFd, Vec<OwnedFd>), Errno> {
    let all = new("tmpfs", &[("mode", "0755")], NO_SUID | NO_DEV)?;
    // Kernels before 6.15 give no view of what is not attached. This place goes with the host's tree, of which
    // nothing is wanted any more; it must not be `/`, where it would lie between the host's root and the machine's.
    attach(all.as_fd(), CWD, "/dev")?;
    let dirs = WRITABLE.iter().map(|(_, name, mode)| (*name, *mode)).chain(VAR_DIRS);
    for (name, mode) in dirs {
        mkdirat(&all, name, Mode::from_raw_mode(mode))?;
    }
    symlinkat("/run", &all, "var/run")?;
    let views = WRITABLE.iter().map(|(_, name, _)| view(all.as_fd(), Path::new(name)));
    let views = views.collect::<Result<_, _>>()?;
    Ok((all, views))
}

fn link_tools(root: BorrowedFd, busybox: Option<OwnedFd>) -> Result<(), Errno> {
    let Some(busybox) = busybox else { return Ok(()) };
    make_file(root, "bin/busybox", b"")?;
    place(busybox.as_fd(), root, "bin/busybox")?;
    TOOLS.split_ascii_whitespace().try_for_each(|tool| symlinkat("busybox", root, format!("bin/{tool}")))
}

fn make_file(dir: BorrowedFd, name: &str, text: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
    let mut rest = text;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

fn attach_store(root: BorrowedFd, sources: Vec<Source>) -> Result<(), SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let store = openat(root, "nix/store", flags, Mode::empty()).map_err(|e| no_mount("/nix/store", e))?;
    for source in sources {
        let mount = source.mount;
        source.attach(store.as_fd()).map_err(|e| unreadable(mount, e))?;
    }
    Ok(())
}

/// Attaches a view of what lies on the host, without writing and the like, and cut off from what the host mounts below it.
fn place(mount: BorrowedFd, dir: BorrowedFd, name: &str) -> Result<(), Errno> {
    match restrict_private(mount, OF_STORE) {
        Err(Errno::NOSYS) => {
            attach(mount, dir, name)?;
            let attached =
                openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            restrict_by_path(attached.as_fd(), OF_STORE)
        }
        restricted => {
            restricted?;
            attach(mount, dir, name)
        }
    }
}

fn restrict_one(mount: BorrowedFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    match restrict(mount, attributes) {
        Err(Errno::NOSYS) => restrict_by_path(mount, attributes),
        result => result,
    }
}

/// `/proc` shows the sandbox's own processes. A host that hides parts of its own (a container) lets nobody make a new one.
fn attach_proc(root: BorrowedFd, map: Map) -> Vec<String> {
    // Its settings belong to the host's root, which is the machine's where there is no user namespace.
    let settings = if map == Map::Host { READ_ONLY } else { MountAttrFlags::empty() };
    let made = new("proc", &[], NO_SUID | NO_DEV | NO_EXEC | settings)
        .and_then(|proc| attach(proc.as_fd(), root, "proc"));
    let note = made
        .err()
        .map(|error| format!("the machine has no /proc: this host does not allow a new one ({error})"));
    note.into_iter().collect()
}

/// Takes the host's tree off the root, with all that is mounted in it. Only when `/..` is the root itself, nothing of the
/// host is left.
pub fn drop_host() -> std::io::Result<()> {
    let ours = stat("/")?;
    for _ in 0..=ROOT_LAYERS_MAX {
        let above = stat("/..")?;
        if (above.st_dev, above.st_ino) == (ours.st_dev, ours.st_ino) {
            return Ok(());
        }
        unmount("/..", UnmountFlags::DETACH)?;
    }
    Err(Errno::BUSY.into())
}

fn no_mount(what: &str, error: Errno) -> SandboxError {
    match error {
        Errno::NOSYS => SandboxError {
            kind: SandboxFailureKind::Unusable,
            message: "this kernel lacks the system calls to mount by descriptor".to_owned(),
            hint: Some("the sandbox driver needs Linux 5.2 or newer; use --driver qemu".to_owned()),
        },
        Errno::PERM | Errno::ACCESS => SandboxError {
            kind: SandboxFailureKind::Unusable,
            hint: Some("`calve doctor` says what this host forbids".to_owned()),
            ..failed(&format!("{what} cannot be mounted in the sandbox"), &error.into())
        },
        error => failed(&format!("{what} cannot be mounted in the sandbox"), &error.into()),
    }
}

fn unreadable(mount: &StoreMount, error: Errno) -> SandboxError {
    let message = format!("the store path {} cannot be mounted from {}", mount.base_name, mount.source);
    let hint = match error {
        Errno::NOENT => Some("it is not there any more: was garbage collected meanwhile?"),
        Errno::MFILE => Some("raise the limit of open files (ulimit -n): each store path needs one"),
        _ => None,
    };
    SandboxError { hint: hint.map(str::to_owned), ..failed(&message, &error.into()) }
}
