//! Writing an image after its plan: two cursors, one over the inodes and one over the contents, both ever forward, so that
//! each file is read once.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use calve_tree::open_file;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use super::dirents;
use super::format::{BLOCK_BYTES, FileType, Inode, Superblock};
use super::plan::{Node, Plan};
use crate::StoreError;

/// Bytes that a cursor gathers before it writes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Contents from this size on are copied by the kernel, which shares their blocks where the file system can; below, the
/// extra system calls cost more than they spare.
const KERNEL_COPY_MIN_BYTES: u64 = 256 * 1024;

/// Writes the image into `image`, an empty file, which lies at `path`; `uuid` tells it apart.
pub fn write(plan: &Plan, uuid: [u8; 16], image: &File, path: &Path) -> Result<(), StoreError> {
    reserve(image, plan.image_bytes()).map_err(StoreError::io("write", path))?;
    let mut writer = Writer {
        plan,
        path,
        inodes: Cursor::new(image, 0),
        contents: Cursor::new(image, u64::from(plan.data_block) * BLOCK_BYTES),
    };
    writer.superblock(uuid)?;
    for at in &plan.order {
        writer.node(*at)?;
    }
    let Writer { inodes, contents, .. } = writer;
    inodes.finish().and_then(|()| contents.finish()).map_err(StoreError::io("write", path))
}

/// Takes the space at once, so that a disk that is too full shows before the work; gaps read as zeros.
fn reserve(image: &File, bytes: u64) -> io::Result<()> {
    match fallocate(image, FallocateFlags::empty(), 0, bytes) {
        // The file system cannot reserve: a full disk shows later.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => image.set_len(bytes),
        reserved => Ok(reserved?),
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    path: &'a Path,
    inodes: Cursor<'a>,
    contents: Cursor<'a>,
}

impl Writer<'_> {
    fn superblock(&mut self, uuid: [u8; 16]) -> Result<(), StoreError> {
        let root_slot = self.plan.nodes[0].slot();
        let superblock = Superblock {
            root_slot: u16::try_from(root_slot).expect("the root has the first inode"),
            inodes: self.plan.nodes.len() as u64,
            blocks: self.plan.blocks,
            uuid,
        };
        self.inodes.put(&superblock.encode()).map_err(StoreError::io("write", self.path))
    }

    fn node(&mut self, at: u32) -> Result<(), StoreError> {
        let node = &self.plan.nodes[at as usize];
        let inode = Inode {
            file_type: node.file_type,
            size: node.size,
            nlink: node.nlink,
            block: node.block,
            inline_tail: node.place.inline_tail,
            number: at + 1,
        };
        let placed = self.inodes.go_to(node.place.inode_at).and_then(|()| self.inodes.put(&inode.encode()));
        placed.map_err(StoreError::io("write", self.path))?;
        match node.file_type {
            FileType::Regular { .. } => self.file(at, node),
            FileType::Directory => self.directory(at, node),
            FileType::Symlink => self.symlink(at, node),
        }
    }

    fn directory(&mut self, at: u32, node: &Node) -> Result<(), StoreError> {
        let entries = self.plan.entries(at);
        for block in dirents::blocks(&entries) {
            let whole = block.len() as u64 == BLOCK_BYTES;
            self.piece(&block, node.place.inline_tail && !whole)?;
        }
        Ok(())
    }

    fn symlink(&mut self, at: u32, node: &Node) -> Result<(), StoreError> {
        let host = self.plan.host_path(at);
        let target = fs::read_link(&host).map_err(StoreError::io("read", &host))?;
        if target.as_os_str().len() as u64 != node.size {
            return Err(StoreError::Changed { path: host });
        }
        self.piece(target.as_os_str().as_bytes(), node.place.inline_tail)
    }

    fn file(&mut self, at: u32, node: &Node) -> Result<(), StoreError> {
        if node.size == 0 {
            return Ok(());
        }
        let host = self.plan.host_path(at);
        let (source, metadata) = open_file(&host)?;
        if metadata.len() != node.size {
            return Err(StoreError::Changed { path: host });
        }
        let whole = node.size.min(node.place.blocks * BLOCK_BYTES);
        if !node.shares_blocks {
            self.contents.copy(&source, whole).map_err(|error| self.copy_error(error, &host))?;
        }
        let mut tail = vec![0; (node.size - whole) as usize];
        source.read_exact_at(&mut tail, whole).map_err(|error| self.copy_error(error.into(), &host))?;
        self.inodes.put(&tail).map_err(StoreError::io("write", self.path))
    }

    /// Writes a piece of contents of at most a block behind the inode or as a block.
    fn piece(&mut self, bytes: &[u8], inline: bool) -> Result<(), StoreError> {
        let put = if inline {
            self.inodes.put(bytes)
        } else {
            self.contents.put(bytes).and_then(|()| self.contents.pad_block())
        };
        put.map_err(StoreError::io("write", self.path))
    }

    fn copy_error(&self, error: CopyError, source: &Path) -> StoreError {
        match error {
            CopyError::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                StoreError::Changed { path: source.to_owned() }
            }
            CopyError::Read(error) => StoreError::io("read", source)(error),
            CopyError::Write(error) => StoreError::io("write", self.path)(error),
        }
    }
}

/// Which side of a copy failed.
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Writes into a part of the image, ever forward.
struct Cursor<'a> {
    image: &'a File,
    /// Where the buffer's first byte goes.
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> Cursor<'a> {
    fn new(image: &'a File, at: u64) -> Self {
        Self { image, at, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Fills with zeros up to `position`.
    fn go_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position.checked_sub(self.position()).expect("cursors go forward");
        // Gaps end with the block that they begin in.
        self.put(&[0; BLOCK_BYTES as usize][..gap as usize])
    }

    fn pad_block(&mut self) -> io::Result<()> {
        self.go_to(self.position().next_multiple_of(BLOCK_BYTES))
    }

    /// Copies the first `bytes` of `source` and pads them to whole blocks.
    fn copy(&mut self, source: &File, bytes: u64) -> Result<(), CopyError> {
        let mut done = 0;
        if bytes >= KERNEL_COPY_MIN_BYTES {
            self.flush().map_err(CopyError::Write)?;
            done = self.kernel_copy(source, bytes).map_err(CopyError::Write)?;
        }
        while done < bytes {
            if self.buffer.len() == BUFFER_BYTES {
                self.flush().map_err(CopyError::Write)?;
            }
            let start = self.buffer.len();
            let most = (bytes - done).min((BUFFER_BYTES - start) as u64);
            self.buffer.resize(start + most as usize, 0);
            let read = source.read_exact_at(&mut self.buffer[start..], done);
            read.map_err(CopyError::Read)?;
            done += most;
        }
        self.pad_block().map_err(CopyError::Write)
    }

    /// Has the kernel copy as much as it can, holes left out; what is left, because the file systems differ or it does
    /// not know how, is for the caller.
    fn kernel_copy(&mut self, source: &File, bytes: u64) -> io::Result<u64> {
        let mut from = 0;
        while from < bytes {
            let data = next_data(source, from, bytes);
            self.at += data.start - from;
            from = data.start;
            if data.is_empty() {
                break;
            }
            let most = usize::try_from(data.end - data.start).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut from), self.image, Some(&mut self.at), most) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}

/// Where `source` next has data from `from` on, up to `end`; a file system that knows no holes has data everywhere
/// (lseek(2)).
fn next_data(source: &File, from: u64, end: u64) -> Range<u64> {
    match seek(source, SeekFrom::Data(from)) {
        Ok(start) if start < end => {
            let hole = seek(source, SeekFrom::Hole(start)).unwrap_or(end);
            start..hole.min(end)
        }
        Ok(_) | Err(Errno::NXIO) => end..end,
        Err(_) => from..end,
    }
}
