//! Images of closures for guests: one EROFS file a closure, made once and kept.
//!
//! A maker holds a lock on `<name>.new` itself and renames it when it is whole, so that makers of one image wait for each
//! other, and what a dead maker left is taken over by the next.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::erofs::{self, Plan};
use crate::register::sync_dir;
use crate::{Closure, Store, StoreError};

/// Changes whenever the same closure gives other bytes: images of older programs are then not taken for ours.
const IMAGE_VERSION: u32 = 1;
const NEW_SUFFIX: &str = ".new";
/// Bytes in a unit of `stat`'s block count (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

impl Store {
    /// The image of `closure` in `images_dir`, which is made where it does not exist: an EROFS file whose root directory
    /// holds the base names of the closure's paths, to be mounted at `/nix/store`. Its size is a multiple of 4 KiB.
    /// Takes no time where the image exists; otherwise about as long as copying the closure.
    pub fn image(&self, closure: &Closure, images_dir: &Path) -> Result<PathBuf, StoreError> {
        fs::create_dir_all(images_dir).map_err(StoreError::io("make the directory", images_dir))?;
        let digest = closure.digest();
        let image = images_dir.join(file_name(&digest));
        let new = images_dir.join(file_name(&digest) + NEW_SUFFIX);
        while !image.exists() {
            let Some(file) = lock_new(&new)? else { continue };
            // Whoever held the lock before may have made it.
            if image.exists() {
                remove_file(&new)?;
                break;
            }
            if let Err(error) = make(closure, &digest, &file, &new, &image) {
                // The first error counts; what stays is taken over by the next maker.
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        }
        Ok(image)
    }
}

/// Removes the images in `images_dir` whose closures' digests are not in `keep`, and what dead makers left; gives the
/// bytes that this freed. Images that are being made stay, as do all other files.
pub fn prune_images(images_dir: &Path, keep: &[String]) -> Result<u64, StoreError> {
    let entries = match fs::read_dir(images_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(StoreError::io("read", images_dir))?,
    };
    let mut freed = 0;
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read", images_dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Some(digest) = digest_of(name.strip_suffix(NEW_SUFFIX).unwrap_or(name)) else { continue };
        let path = entry.path();
        // The lock of a dead maker is held until its file is gone, so that the next maker cannot take it over meanwhile.
        let mut _lock = None;
        let unwanted = if name.ends_with(NEW_SUFFIX) {
            _lock = File::open(&path).ok().filter(|file| file.try_lock().is_ok());
            _lock.is_some()
        } else {
            name != file_name(digest) || !keep.iter().any(|kept| kept == digest)
        };
        if unwanted {
            let bytes = entry.metadata().map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES);
            remove_file(&path)?;
            freed += bytes;
        }
    }
    Ok(freed)
}

fn file_name(digest: &str) -> String {
    format!("{digest}.{IMAGE_VERSION}.erofs")
}

/// The digest in an image's file name, of whichever version.
fn digest_of(name: &str) -> Option<&str> {
    let (digest, version) = name.strip_suffix(".erofs")?.split_once('.')?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    (is_digest && version.parse::<u32>().is_ok()).then_some(digest)
}

/// Waits for the lock on the file at `new`; none if meanwhile another file, or none, has come to lie there.
fn lock_new(new: &Path) -> Result<Option<File>, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(new);
    let file = opened.and_then(|file| file.lock().map(|()| file)).map_err(StoreError::io("write", new))?;
    let held = file.metadata().map_err(StoreError::io("write", new))?;
    let is_there =
        fs::metadata(new).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
    Ok(is_there.then_some(file))
}

fn make(closure: &Closure, digest: &str, file: &File, new: &Path, image: &Path) -> Result<(), StoreError> {
    let plan = Plan::new(closure)?;
    // What a dead maker wrote must not show through gaps.
    file.set_len(0).map_err(StoreError::io("write", new))?;
    erofs::write(&plan, uuid(digest), file, new)?;
    file.sync_all().map_err(StoreError::io("write", new))?;
    fs::rename(new, image).map_err(StoreError::io("write", image))?;
    sync_dir(image.parent().expect("it lies in a directory"))
}

/// The first half of the digest.
fn uuid(digest: &str) -> [u8; 16] {
    u128::from_str_radix(&digest[..32], 16).expect("hexadecimal digits").to_be_bytes()
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(StoreError::io("remove", path)),
    }
}
