//! Small files that Nix keeps beside archives: build logs and realisations.
//!
//! ```text
//! <dir>/nix/log/<derivation>.drv            as it was sent
//! <dir>/nix/realisations/<id>.doi
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use calve_nix::CacheFile;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a build said.
    Log,
    /// What a derivation's output turned out to be.
    Realisation,
}

impl Kind {
    fn directory(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Realisation => "realisations",
        }
    }

    /// Most bytes of such a file.
    pub fn max_bytes(self) -> u64 {
        match self {
            // Nix itself keeps 64 MiB of output at most by some settings, and most logs have KBs.
            Self::Log => 64 << 20,
            Self::Realisation => 1 << 20,
        }
    }

    /// Whether this is a name of such a file.
    pub fn is_name(self, name: &str) -> bool {
        match self {
            Self::Log => matches!(format!("log/{name}").parse(), Ok(CacheFile::Log(_))),
            Self::Realisation => {
                matches!(format!("realisations/{name}").parse(), Ok(CacheFile::Realisation(_)))
            }
        }
    }
}

/// The files of one cache. Calls block.
#[derive(Debug, Clone)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// The files in a cache's directory; nothing is made yet.
    pub fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join("nix") }
    }

    /// A file, where there is one; the name must be one of its kind.
    pub fn get(&self, kind: Kind, name: &str) -> io::Result<Option<Bytes>> {
        match fs::read(self.path(kind, name)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps a file; the name must be one of its kind. It appears whole or not at all.
    pub fn put(&self, kind: Kind, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(kind, name);
        let parent = path.parent().expect("it lies in a directory");
        fs::create_dir_all(parent)?;
        let draft = parent.join(format!(".{:032x}", crate::random::u128()));
        let written = write(&draft, bytes).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }

    fn path(&self, kind: Kind, name: &str) -> PathBuf {
        debug_assert!(kind.is_name(name));
        self.dir.join(kind.directory()).join(name)
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_nix() {
        let hash = calve_nix::Sha256Hash::of(b"").to_string();
        assert!(Kind::Realisation.is_name(&format!("{hash}!out.doi")));
        for bad in [format!("{hash}!../x.doi"), format!("{hash}.doi"), "x!out.doi".to_owned()] {
            assert!(!Kind::Realisation.is_name(&bad), "{bad}");
        }
        assert!(Kind::Log.is_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a.drv"));
        assert!(!Kind::Log.is_name("../a.drv"));
    }

    #[test]
    fn what_is_put_is_got() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path());
        let name = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a.drv";
        assert_eq!(kept.get(Kind::Log, name).unwrap(), None);
        kept.put(Kind::Log, name, b"one").unwrap();
        kept.put(Kind::Log, name, b"two").unwrap();
        assert_eq!(kept.get(Kind::Log, name).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(dir.path().join("nix/log")).unwrap().count(), 1);
    }
}
