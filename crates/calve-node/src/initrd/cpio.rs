//! Writes cpio archives in the one format that the kernel unpacks
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive in the making; owners are root, times are zero, so that equal contents give equal bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), next_inode: 1 }
    }

    /// Adds a directory; its parent must be there already.
    pub(super) fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, S_IFDIR | mode, b"");
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entry(path, S_IFREG | mode, contents);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, S_IFLNK | 0o777, target.as_bytes());
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        let size = u32::try_from(contents.len()).expect("files in an initrd are below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths in an initrd are short");
        let links = if mode & S_IFDIR == 0 { 1 } else { 2 };
        // ino mode uid gid nlink mtime filesize major minor rmajor rminor namesize check
        let fields = [self.next_inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.next_inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn headers_and_contents_are_aligned_as_the_format_says() {
        let mut archive = Archive::new();
        archive.file("ab", 0o644, b"xyz");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!((&bytes[110..113], &bytes[116..119]), (&b"ab\0"[..], &b"xyz"[..]));
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    /// busybox reads what we write; without a busybox, real guests in `tests/guest.rs` still show it.
    #[test]
    fn others_can_read_it() {
        let Some(busybox) = crate::initrd::static_busybox() else { return };
        let mut archive = Archive::new();
        archive.directory("d", 0o755);
        archive.file("d/f", 0o755, b"hello");
        archive.link("l", "d/f");
        let bytes = archive.finish();
        let mut child = Command::new(busybox)
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "d\nd/f\nl\n");
    }
}
