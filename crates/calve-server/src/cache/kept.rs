//! Small files that Nix keeps beside archives: build logs and realisations.
//!
//! ```text
//! <dir>/nix/log/<derivation>.drv            as it was sent
//! <dir>/nix/realisations/<id>.doi
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use calve_nix::{CacheFile, Realisation};
use calve_store::cache::Cache;

/// How old the note of a file's last use may be before it is written again.
const USE_NOTED_EVERY: Duration = Duration::from_secs(3600);
/// How long files stay after their last use where nothing else is said: Nix uploads a realisation before its path.
pub const KEPT_GRACE: Duration = Duration::from_secs(24 * 3600);

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

    /// A file, where there is one; the name must be one of its kind. That is a use of it.
    pub fn get(&self, kind: Kind, name: &str) -> io::Result<Option<Bytes>> {
        let path = self.path(kind, name);
        match fs::read(&path) {
            Ok(bytes) => {
                note_use(&path);
                Ok(Some(bytes.into()))
            }
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

    /// All files that were not used for `grace`, each with its kind.
    fn unused(&self, grace: Duration) -> io::Result<Vec<(Kind, PathBuf, SystemTime)>> {
        let before = SystemTime::now().checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut found = Vec::new();
        for kind in [Kind::Log, Kind::Realisation] {
            let entries = match fs::read_dir(self.dir.join(kind.directory())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                // Removed in this moment.
                let Ok(metadata) = entry.metadata() else { continue };
                let used = metadata.modified()?;
                if metadata.is_file() && used <= before {
                    found.push((kind, entry.path(), used));
                }
            }
        }
        Ok(found)
    }

    fn path(&self, kind: Kind, name: &str) -> PathBuf {
        debug_assert!(kind.is_name(name));
        self.dir.join(kind.directory()).join(name)
    }
}

/// Removes from a cache the realisations whose path it does not have and drafts of broken off uploads, and where a `max_age`
/// is given, also every log and realisation that nobody used for so long; nothing that was used within `grace`. Gives the
/// files and bytes that are gone, or would be in a `dry_run`.
pub async fn collect_kept(
    cache: &Cache,
    max_age: Option<Duration>,
    grace: Duration,
    dry_run: bool,
) -> io::Result<(u64, u64)> {
    let kept = Kept::new(cache.dir());
    let unused = super::blocking(move || kept.unused(grace)).await?;
    let old = max_age.and_then(|age| SystemTime::now().checked_sub(age));
    let (mut files, mut bytes) = (0, 0);
    for (kind, path, used) in unused {
        let draft = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_old = old.is_some_and(|old| used <= old);
        let gone = draft || is_old || (kind == Kind::Realisation && leads_nowhere(cache, &path).await?);
        if !gone {
            continue;
        }
        (files, bytes) = (files + 1, bytes + fs::metadata(&path).map_or(0, |metadata| metadata.len()));
        if dry_run {
            continue;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok((files, bytes))
}

/// Whether a realisation speaks of a path that the cache does not have, or of none at all.
async fn leads_nowhere(cache: &Cache, file: &Path) -> io::Result<bool> {
    let Ok(text) = fs::read_to_string(file) else { return Ok(false) };
    let Ok(realisation) = text.parse::<Realisation>() else { return Ok(true) };
    let holds = cache.holds(realisation.out_path.hash_part()).await;
    Ok(!holds.map_err(io::Error::other)?)
}

fn note_use(path: &Path) {
    let is_recent = |time: SystemTime| time.elapsed().is_ok_and(|age| age < USE_NOTED_EVERY);
    if fs::metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(is_recent) {
        return;
    }
    // Without the note it may be collected early, which costs whoever wants it a build.
    let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
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

    /// A realisation of an output that became `path`.
    fn realisation(path: &str) -> (String, String) {
        let id = format!("{}!out", calve_nix::Sha256Hash::of(path.as_bytes()));
        let text =
            format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#);
        (format!("{id}.doi"), text)
    }

    #[tokio::test]
    async fn realisations_go_with_their_paths_and_logs_with_age() {
        const LOG: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a.drv";
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(calve_store::cache::CacheOptions::local(dir.path())).await.unwrap();
        let kept = Kept::new(dir.path());
        let (name, text) = realisation("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-gone");
        kept.put(Kind::Realisation, &name, text.as_bytes()).unwrap();
        kept.put(Kind::Log, LOG, b"it was built").unwrap();
        let draft = dir.path().join("nix/log/.draft");
        fs::write(&draft, "half").unwrap();
        let files = [draft, kept.path(Kind::Realisation, &name), kept.path(Kind::Log, LOG)];
        let left = || files.iter().filter(|file| file.exists()).count();
        // New ones stay, whatever they are.
        assert_eq!(collect_kept(&cache, Some(Duration::ZERO), DAY, false).await.unwrap(), (0, 0));
        let age = |file: &PathBuf, time| {
            File::options().append(true).open(file).unwrap().set_modified(SystemTime::now() - time).unwrap();
        };
        files.iter().for_each(|file| age(file, 2 * DAY));
        assert_eq!(collect_kept(&cache, None, DAY, true).await.unwrap().0, 2);
        assert_eq!(left(), 3);
        assert_eq!(collect_kept(&cache, None, DAY, false).await.unwrap().0, 2);
        assert!(left() == 1 && files[2].exists());
        // A log that somebody reads is used.
        kept.get(Kind::Log, LOG).unwrap().unwrap();
        assert_eq!(collect_kept(&cache, Some(DAY), DAY, false).await.unwrap().0, 0);
        age(&files[2], 2 * DAY);
        assert_eq!(collect_kept(&cache, Some(DAY), DAY, false).await.unwrap(), (1, 12));
        assert_eq!(left(), 0);
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
