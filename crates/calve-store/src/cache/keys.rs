//! The key that signs what a cache commits.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use calve_nix::SecretKey;
use calve_nix::sign::SEED_BYTES;

use super::CacheError;

/// Random bytes in the name of a new key: a host makes few caches.
const NAME_RANDOM_BYTES: usize = 3;
/// Most characters of the host's name in that of a key, as long as host names are in the DNS.
const HOST_CHARS_MAX: usize = 63;

fn file(dir: &Path) -> PathBuf {
    dir.join("key")
}

/// The key in a cache's directory; made, with this name, where there is none.
pub(super) fn open(dir: &Path, name: Option<&str>) -> Result<SecretKey, CacheError> {
    if !file(dir).exists() {
        match name {
            Some(name) => make(dir, name)?,
            None => make(dir, &new_name()?)?,
        }
    }
    read(dir)
}

/// The key in a cache's directory, where there is one.
pub(super) fn read(dir: &Path) -> Result<SecretKey, CacheError> {
    let file = file(dir);
    let text = fs::read_to_string(&file).map_err(CacheError::io("read", &file))?;
    text.parse()
        .map_err(|error| CacheError::Setting(format!("{} holds no secret key: {error}", file.display())))
}

/// `<host>-<random>-1`: nobody else has that name, and the number is for the keys that may follow.
fn new_name() -> Result<String, CacheError> {
    let mut random_bytes = [0; NAME_RANDOM_BYTES];
    random(&mut random_bytes)?;
    let random: String = random_bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let in_name = |c: &char| c.is_ascii_alphanumeric() || ['-', '.'].contains(c);
    let host: String = host.chars().filter(in_name).take(HOST_CHARS_MAX).collect();
    Ok(format!("{}-{random}-1", if host.is_empty() { "calve" } else { &host }))
}

/// Writes a new key; one that another process writes meanwhile stays.
fn make(dir: &Path, name: &str) -> Result<(), CacheError> {
    let mut seed = [0; SEED_BYTES];
    random(&mut seed)?;
    let key = SecretKey::from_seed(name, seed).map_err(|error| CacheError::Setting(error.to_string()))?;
    let new =
        tempfile::Builder::new().prefix("key.").tempdir_in(dir).map_err(CacheError::io("write to", dir))?;
    let path = new.path().join("key");
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            file.write_all(key.to_text().as_bytes())?;
            file.sync_all()
        });
    written.map_err(CacheError::io("write", &path))?;
    match fs::hard_link(&path, file(dir)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(CacheError::io("write", &file(dir))),
    }
}

/// Fills `bytes` with random ones.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), CacheError> {
    let device = Path::new("/dev/urandom");
    let read = fs::File::open(device).and_then(|mut file| file.read_exact(bytes));
    read.map_err(CacheError::io("read", device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_keys_have_names_of_their_own_and_old_ones_stay() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [first, second] = [&one, &two].map(|dir| open(dir.path(), None).unwrap());
        assert_ne!(first.name(), second.name());
        assert!(first.name().ends_with("-1") && !first.name().contains(':'), "{}", first.name());
        assert_eq!(first.public().to_string().parse(), Ok(first.public()));
        assert_eq!(open(one.path(), Some("other")).unwrap().name(), first.name());
    }
}
