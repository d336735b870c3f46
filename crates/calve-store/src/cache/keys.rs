//! The key that signs what a cache commits.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use calve_nix::SecretKey;
use calve_nix::sign::SEED_BYTES;

use super::CacheError;

/// The key in a cache's directory; made, with this name, where there is none.
pub(super) fn open(dir: &Path, name: &str) -> Result<SecretKey, CacheError> {
    let file = dir.join("key");
    if !file.exists() {
        make(dir, name)?;
    }
    let text = fs::read_to_string(&file).map_err(CacheError::io("read", &file))?;
    text.parse()
        .map_err(|error| CacheError::Setting(format!("{} holds no secret key: {error}", file.display())))
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
    match fs::hard_link(&path, dir.join("key")) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(CacheError::io("write", &dir.join("key"))),
    }
}

/// Fills `bytes` with random ones.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), CacheError> {
    let device = Path::new("/dev/urandom");
    let read = fs::File::open(device).and_then(|mut file| file.read_exact(bytes));
    read.map_err(CacheError::io("read", device))
}
