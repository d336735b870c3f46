//! Mounts as descriptors (`fsopen(2)`, `open_tree(2)`, `move_mount(2)`, `mount_setattr(2)`): one that is not yet attached
//! is seen by nobody, and no path is looked up twice.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
    MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_string, fsmount,
    fsopen, fspick, mount_remount, move_mount, open_tree,
};

/// A new file system of this type.
pub fn new(fs_type: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Another view of the file or tree at `path`, with what is mounted below it.
pub fn view(dir: BorrowedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(dir, path, flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
}

/// As [`view`], for an absolute path.
pub fn view_of(path: &Path) -> Result<OwnedFd, Errno> {
    view(CWD, path)
}

/// Attaches a mount at `name` in `dir`.
pub fn attach(mount: BorrowedFd, dir: BorrowedFd, name: &str) -> Result<(), Errno> {
    move_mount(mount, "", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Restricts the mount by these attributes.
pub fn restrict(mount: BorrowedFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    let attr = MountAttr { set: attributes.bits().into(), clear: 0, propagation: 0, user_namespace: 0 };
    set_attributes(mount, false, attr)
}

/// Restricts the mount and all below it, and cuts them off from what is mounted elsewhere.
pub fn restrict_private(mount: BorrowedFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    let propagation = MountPropagationFlags::PRIVATE.bits().into();
    set_attributes(
        mount,
        true,
        MountAttr { set: attributes.bits().into(), clear: 0, propagation, user_namespace: 0 },
    )
}

/// Whether this kernel takes attributes by descriptor (Linux 5.12).
pub fn can_restrict() -> bool {
    let nothing = MountAttr { set: 0, clear: 0, propagation: 0, user_namespace: 0 };
    set_attributes(CWD, false, nothing) != Err(Errno::NOSYS)
}

/// Sets an option of the file system behind an attached mount.
pub fn reconfigure(mount: BorrowedFd, key: &str, value: &str) -> Result<(), Errno> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mount, "", flags)?;
    fsconfig_set_string(context.as_fd(), key, value)?;
    fsconfig_reconfigure(context.as_fd())
}

fn set_attributes(mount: BorrowedFd, recursive: bool, attr: MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` has the size that is told; both live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags as libc::c_uint,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// As [`restrict`] for a single attached mount, on kernels before 5.12: by the path that `/proc` gives its descriptor.
/// What is set already must be said again, or a user namespace may not change it.
pub fn restrict_by_path(mount: BorrowedFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    const SAME: [(MountAttrFlags, MountFlags); 4] = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
    ];
    let now = rustix::fs::fstatvfs(mount)?.f_flag.bits() as u32;
    let mut flags = MountFlags::BIND;
    for (attribute, flag) in SAME {
        flags.set(flag, attributes.contains(attribute) || now & flag.bits() != 0);
    }
    for (of_statvfs, flag) in [
        (libc::ST_NOATIME, MountFlags::NOATIME),
        (libc::ST_NODIRATIME, MountFlags::NODIRATIME),
        (libc::ST_RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(flag, u64::from(now) & of_statvfs != 0);
    }
    mount_remount(format!("/proc/self/fd/{}", mount.as_raw_fd()), flags, "")
}
