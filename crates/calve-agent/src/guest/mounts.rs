//! The file systems of a guest.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};

use super::parameters::Store;

/// What every guest has before anything else can be done.
pub(super) fn base() -> anyhow::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    attach("proc", "/proc", "proc", quiet, "")?;
    attach("sysfs", "/sys", "sysfs", quiet, "")?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    Ok(())
}

/// What programs expect besides, in a guest without a system.
pub(super) fn for_programs() -> anyhow::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "mode=0620,gid=5,ptmxmode=0666",
    )?;
    attach("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777")?;
    attach("tmpfs", "/tmp", "tmpfs", safe, "mode=1777")?;
    attach("tmpfs", "/run", "tmpfs", safe, "mode=0755")?;
    Ok(())
}

/// The closure, read-only, at `target`.
pub(super) fn store(store: &Store, target: &str) -> anyhow::Result<()> {
    let (source, kind) = match store {
        Store::Image(device) => (device, "erofs"),
        Store::Live(tag) => (tag, "virtiofs"),
    };
    attach(source, target, kind, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")
}

/// Mounts, with the directory made where it is missing.
pub(super) fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> anyhow::Result<()> {
    directory(target).with_context(|| format!("the directory {target} cannot be made"))?;
    let options = std::ffi::CString::new(options).context("mount options")?;
    mount(source, target, kind, flags, Some(options.as_c_str()))
        .with_context(|| format!("{kind} cannot be mounted at {target}"))
}

/// Makes a directory and those above it.
pub(super) fn directory(path: impl AsRef<Path>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}
