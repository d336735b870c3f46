//! A mounted closure, and how it ends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{getegid, geteuid};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::chunks::Chunks;
use super::closure::LazyClosure;
use super::file_system::{Inner, LazyFs};
use super::inodes::Inodes;
use super::prefetch;
use crate::Store;
use crate::pull::PullOptions;

/// The device through which the kernel asks.
const DEVICE: &str = "/dev/fuse";
/// Threads that take the kernel's requests; what takes time is done elsewhere.
const THREADS: usize = 2;

/// Why a closure was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE, or this user may not use it.
    #[error("nothing can be mounted here, as {DEVICE} cannot be opened")]
    NoFuse(#[source] io::Error),
    /// Mounting failed.
    #[error("{path} cannot be mounted on")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the operating system, or `fusermount3`, said.
        source: io::Error,
    },
}

impl MountError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoFuse(_) => "load the kernel's module fuse, or leave lazy delivery out".to_owned(),
            Self::Mount { .. } if geteuid().is_root() => "see whether mounting is allowed here".to_owned(),
            Self::Mount { .. } => "who is not root needs fusermount3 (package fuse3)".to_owned(),
        }
    }
}

/// A mounted closure. It is served by this process until the last use of it is gone, also of copies of the mount in other
/// mount namespaces; dropping it takes the mount out of sight.
pub struct Mount {
    at: PathBuf,
    inner: Arc<Inner>,
    sources: Vec<crate::pull::Source>,
    ended: watch::Receiver<bool>,
}

impl Mount {
    /// Whether anything can be mounted here: one sentence why not.
    pub fn check() -> Result<(), MountError> {
        let opened = std::fs::File::options().read(true).write(true).open(DEVICE);
        opened.map(drop).map_err(MountError::NoFuse)
    }

    /// Mounts a closure on a directory, where its paths lie under their base names.
    pub fn new(closure: LazyClosure, chunks: Chunks, at: &Path) -> Result<Self, MountError> {
        Self::check()?;
        let inner = Arc::new(Inner {
            inodes: Inodes::new(closure),
            chunks: chunks.clone(),
            runtime: Handle::current(),
            pulled: OnceLock::new(),
            followed: Mutex::default(),
            owner: (geteuid().as_raw(), getegid().as_raw()),
        });
        let failed = |source| MountError::Mount { path: at.to_owned(), source };
        let session = mounted(&inner, at).map_err(failed)?;
        let (told, ended) = watch::channel(false);
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "the mount broke");
            }
            let _ = told.send(true);
        };
        std::thread::Builder::new().name("lazy".to_owned()).spawn(serve).map_err(failed)?;
        Ok(Self { at: at.to_owned(), inner, sources: chunks.sources().to_vec(), ended })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Waits until nothing uses it any more.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // The thread's going without a word is an end, too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Takes it out of sight; who uses it goes on.
    pub fn detach(&self) {
        detach(&self.at);
    }

    /// Pulls the rest into the private store while nothing is read, and reads from there afterwards. Gives when all is there;
    /// failures are logged and tried again.
    pub async fn prefetch(&self, store: Arc<Store>, options: PullOptions, root: &Path) {
        let paths = self.inner.inodes.roots().map(|root| root.path.info.path.clone()).collect::<Vec<_>>();
        prefetch::all(&self.inner.chunks, &self.sources, store, &paths, options).await;
        let _ = self.inner.pulled.set(root.to_owned());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Takes a mount out of sight, whoever made it; its absence is success.
pub fn detach(at: &Path) {
    if unmount(at, UnmountFlags::DETACH).is_err() && !geteuid().is_root() {
        let mut command = std::process::Command::new("fusermount3");
        command.args(["-u", "-q", "-z", "--"]).arg(at).stdin(std::process::Stdio::null());
        let _ = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    }
}

/// Mounts for everybody where that is allowed: a sandbox's program may be another user than this one.
fn mounted(inner: &Arc<Inner>, at: &Path) -> io::Result<Session<LazyFs>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName("calve".to_owned()),
        MountOption::Subtype("lazy".to_owned()),
    ];
    config.n_threads = Some(THREADS);
    config.acl = SessionACL::All;
    match Session::new(LazyFs(inner.clone()), at, &config) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => {
            config.acl = SessionACL::Owner;
            Session::new(LazyFs(inner.clone()), at, &config)
        }
        result => result,
    }
}
