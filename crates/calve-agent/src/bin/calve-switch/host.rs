//! The host as this program sees it: everything below one root, which is `/` but for tests.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use calve_wire::system::SWITCH_DIR;

/// Where the host's system is told, and what is started from it.
const CURRENT: &str = "/run/current-system";
const BOOTED: &str = "/run/booted-system";

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host whose root is this directory.
    pub fn at(root: PathBuf) -> anyhow::Result<Self> {
        let root = root.canonicalize().with_context(|| format!("{} is no root", root.display()))?;
        Ok(Self { root })
    }

    /// Whether it is the host that this program runs on.
    pub fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where an absolute path of the host lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the directory where this program keeps what must survive.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.path(SWITCH_DIR).join(name)
    }

    /// Where a link of the host leads.
    pub fn link(&self, path: &str) -> Option<String> {
        std::fs::read_link(self.path(path)).ok()?.into_os_string().into_string().ok()
    }

    /// The system that runs.
    pub fn current(&self) -> Option<String> {
        self.link(CURRENT)
    }

    /// The system that was booted.
    pub fn booted(&self) -> Option<String> {
        self.link(BOOTED)
    }

    /// Names this boot of the host (random(4)).
    pub fn boot_id(&self) -> String {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let read = |path: PathBuf| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        read(self.path(BOOT_ID)).or_else(|_| read(BOOT_ID.into())).unwrap_or_default()
    }

    /// The program of the host with this name: out of a system, or of the usual directories.
    pub fn program(&self, systems: &[&str], name: &str) -> Option<PathBuf> {
        let in_systems = systems.iter().map(|system| format!("{system}/sw/bin/{name}"));
        let usual = [
            "/run/current-system/sw/bin",
            "/usr/bin",
            "/bin",
            "/usr/sbin",
            "/sbin",
            "/nix/var/nix/profiles/default/bin",
        ];
        let usual = usual.iter().map(|dir| format!("{dir}/{name}"));
        in_systems.chain(usual).map(|path| self.path(&path)).find(|path| path.exists())
    }
}

/// Milliseconds since the host was started, also while it slept; no clock that somebody sets.
pub fn boottime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// The host's clock.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Makes a link in one step, whatever was there.
pub fn replace_link(target: &str, link: &Path) -> io::Result<()> {
    let new = link.with_extension("calve-new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &new)?;
    std::fs::rename(&new, link)?;
    sync_dir(link.parent().unwrap_or(Path::new("/")))
}

/// Has a directory's entries survive a power failure.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

/// Removes a file; absence is success.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
