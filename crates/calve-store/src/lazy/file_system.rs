//! The closure as the kernel sees it: a directory with its store paths, read-only. Nothing in it ever changes, so the kernel
//! may keep whatever it was told.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use super::chunks::Chunks;
use super::inodes::{Inode, Inodes, ROOT};
use super::tree::NodeKind;

/// How long the kernel may believe what it was told: nothing changes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Files up to this size come as a whole when they are first touched: programs and libraries are read all over the place,
/// and each page that is missed costs a round trip.
const WHOLE_FILE_BYTES: u64 = 2 << 20;
/// Bytes that are fetched ahead of a read that begins at a file's beginning, or goes on where one ended.
const AHEAD_MIN_BYTES: u64 = 1 << 20;
/// The most, reached by doubling at each read that goes on: 1 Gbit/s for 60 ms.
const AHEAD_MAX_BYTES: u64 = 8 << 20;
/// How far from its expected place a read may be and still goes on: the kernel's read-ahead sends reads in any order.
const ORDER_SLACK_BYTES: u64 = 512 << 10;
/// Files whose reads are followed, at most.
const FOLLOWED_FILES_MAX: usize = 4096;
/// Requests of the kernel at once that nobody waits for, as read-ahead.
const BACKGROUND_REQUESTS: u16 = 64;

/// A mounted closure.
pub struct LazyFs(pub Arc<Inner>);

/// What reads that wait share with it.
pub struct Inner {
    pub inodes: Inodes,
    pub chunks: Chunks,
    pub runtime: Handle,
    /// Directory of the store in which all paths are by now.
    pub pulled: OnceLock<PathBuf>,
    pub followed: Mutex<HashMap<u64, Followed>>,
    pub owner: (u32, u32),
}

/// Where reads of a file are.
#[derive(Clone, Copy, Default)]
pub struct Followed {
    next: u64,
    window: u64,
    wanted: u64,
}

impl Filesystem for LazyFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What a kernel does not have it does without.
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_MAX_PAGES,
        ] {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(BACKGROUND_REQUESTS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inodes = &self.0.inodes;
        let found = match parent.0 {
            ROOT => inodes.root(name.as_bytes()),
            parent => inodes.get(parent).and_then(|parent| parent.entry(name.as_bytes())),
        };
        match found {
            Some(inode) => reply.entry(&FOREVER, &self.0.attr(&inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attr_of(number.0) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.0.inodes.get(number.0).map(|inode| &inode.node.kind) {
            Some(NodeKind::Symlink { target }) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(inode) = self.0.inodes.get(number.0) else { return reply.error(Errno::ESTALE) };
        let NodeKind::File { size: end, .. } = inode.node.kind else { return reply.error(Errno::EISDIR) };
        let range = offset.min(end)..offset.saturating_add(size.into()).min(end);
        if range.is_empty() {
            return reply.data(&[]);
        }
        if let Some(bytes) = self.0.read_pulled(&inode, &range) {
            return reply.data(&bytes);
        }
        let archive = self.0.follow(&inode, &range);
        if let Some(bytes) = inode.path.read_here(&self.0.chunks, &archive) {
            return reply.data(&bytes);
        }
        let inner = self.0.clone();
        self.0.runtime.spawn(async move {
            let inode = inner.inodes.get(number.0).expect("it was there before");
            match inode.path.read(&inner.chunks, &archive).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    let (path, place) = (&inode.path.info.path, inode.place());
                    tracing::error!(%path, file = %place.display(), %error, "a read failed");
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (next, name, attr) in self.0.entries_from(number.0, offset) {
            if reply.add(attr.ino, next, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (next, name, attr) in self.0.entries_from(number.0, offset) {
            if reply.add(attr.ino, next, name, &FOREVER, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel asks no more after this.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

impl Inner {
    /// The attributes of a file.
    fn attr(&self, inode: &Inode<'_>) -> FileAttr {
        match &inode.node.kind {
            NodeKind::Directory => self.new_attr(inode.number, FileType::Directory, 0o555, 0),
            NodeKind::File { executable, size, .. } => {
                let perm = if *executable { 0o555 } else { 0o444 };
                self.new_attr(inode.number, FileType::RegularFile, perm, *size)
            }
            NodeKind::Symlink { target } => {
                self.new_attr(inode.number, FileType::Symlink, 0o777, target.len() as u64)
            }
        }
    }

    fn attr_of(&self, number: u64) -> Option<FileAttr> {
        match number {
            ROOT => Some(self.new_attr(ROOT, FileType::Directory, 0o555, 0)),
            number => self.inodes.get(number).map(|inode| self.attr(&inode)),
        }
    }

    fn new_attr(&self, number: u64, kind: FileType, perm: u16, size: u64) -> FileAttr {
        // As in every Nix store.
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(1);
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The entries of a directory from the `offset`th on, each with the offset of the next.
    fn entries_from(
        &self,
        number: u64,
        offset: u64,
    ) -> Box<dyn Iterator<Item = (u64, &OsStr, FileAttr)> + '_> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let dots = move |own: Option<FileAttr>, parent: u64| {
            let parent = self.attr_of(parent);
            [(".", own), ("..", parent)]
                .into_iter()
                .filter_map(|(name, attr)| Some((OsStr::new(name), attr?)))
        };
        let own = self.attr_of(number);
        match self.inodes.get(number) {
            Some(inode) => {
                let entries = inode.entries();
                let entries = entries.map(|entry| (OsStr::from_bytes(&entry.node.name), self.attr(&entry)));
                let all = dots(own, inode.parent()).chain(entries);
                Box::new((1..).zip(all).skip(skip).map(|(next, (name, attr))| (next, name, attr)))
            }
            None => {
                let roots = self.inodes.roots();
                let entries =
                    roots.map(|root| (OsStr::new(root.path.info.path.base_name()), self.attr(&root)));
                let all = dots(own, ROOT).chain(entries);
                Box::new((1..).zip(all).skip(skip).map(|(next, (name, attr))| (next, name, attr)))
            }
        }
    }

    /// Bytes of a file out of the store, once the whole closure is there.
    fn read_pulled(&self, inode: &Inode<'_>, range: &Range<u64>) -> Option<Vec<u8>> {
        let place = self.pulled.get()?.join(inode.path.info.path.base_name()).join(inode.place());
        let mut bytes = vec![0; (range.end - range.start) as usize];
        // Where somebody removed it, caches still have it.
        File::open(place).ok()?.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    }

    /// Where in the archive a part of a file lies; what is likely to be read next is fetched.
    fn follow(&self, inode: &Inode<'_>, range: &Range<u64>) -> Range<u64> {
        let NodeKind::File { size, offset, .. } = inode.node.kind else { return 0..0 };
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.len() >= FOLLOWED_FILES_MAX && !followed.contains_key(&inode.number) {
            followed.clear();
        }
        let known = followed.get(&inode.number).copied();
        let mut file = known.unwrap_or_default();
        let near = range.start.abs_diff(file.next) <= ORDER_SLACK_BYTES;
        if known.is_none() && size <= WHOLE_FILE_BYTES {
            file.wanted = size;
            self.chunks.want_now(inode.path.pieces(&(offset..offset + size)));
        } else if near {
            file.window = (file.window * 2).clamp(AHEAD_MIN_BYTES, AHEAD_MAX_BYTES);
        } else {
            (file.window, file.wanted) = (0, range.end);
        }
        file.next = if near { file.next.max(range.end) } else { range.end };
        let (from, to) = (file.wanted.max(range.end), (file.next + file.window).min(size));
        file.wanted = file.wanted.max(to);
        followed.insert(inode.number, file);
        drop(followed);
        // Before what comes ahead of it.
        self.chunks.want_now(inode.path.pieces(&(offset + range.start..offset + range.end)));
        if from < to {
            self.chunks.want_next(inode.path.pieces(&(offset + from..offset + to)));
        }
        offset + range.start..offset + range.end
    }
}
