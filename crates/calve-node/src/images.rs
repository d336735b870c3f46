//! Files made once for guests: written beside their place and renamed, so that a reader never sees half of one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest as _, Sha256};

/// Tells a file from every other and from its own earlier versions without reading it.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    let (dev, ino, size) = (meta.dev(), meta.ino(), meta.size());
    Ok(format!("{}:{dev}:{ino}:{size}:{}.{:09};", path.display(), meta.mtime(), meta.mtime_nsec()))
}

/// A short name for these parts: 32 hexadecimal digits.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file out of parts, at once or not at all; several writers of the same file do not disturb each other.
pub(crate) fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{n}.new", std::process::id()));
    let new = PathBuf::from(name);
    let result = (|| {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file = File::create(&new)?;
        for part in parts {
            file.write_all(part)?;
        }
        fs::rename(&new, path)
    })();
    if result.is_err() {
        // Half a file is of no use to anyone; that it may not have been made is fine.
        let _ = fs::remove_file(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_and_a_failure_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("calve-images-{}", std::process::id()));
        let path = dir.join("a");
        write(&path, &[b"one", b"two"]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onetwo");
        assert!(write(&dir.join("a/b"), &[b"x"]).is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn keys_differ_where_parts_do() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["a"]).len(), 32);
    }
}
