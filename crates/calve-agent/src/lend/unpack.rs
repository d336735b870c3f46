//! Store paths out of an archive: each appears under its name once it is complete.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tar::{Archive, EntryType};

/// Unpacks the archive of these store paths into `store`; what is under way has a name with this prefix.
pub fn unpack(input: impl Read, store: &Path, prefix: &str, expected: &[String]) -> io::Result<()> {
    let mut tree = Tree { store, prefix, dirs: Vec::new(), made: HashSet::new() };
    for entry in Archive::new(input).entries()? {
        tree.take(entry?, expected)?;
    }
    // The innermost first: a directory that is closed takes nothing more.
    for (dir, mode, mtime) in tree.dirs.iter().rev() {
        fs::set_permissions(dir, fs::Permissions::from_mode(*mode))?;
        set_time(dir, *mtime)?;
    }
    for name in expected {
        let (coming, there) = (store.join(format!("{prefix}{name}")), store.join(name));
        if fs::symlink_metadata(&coming).is_err() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} did not come")));
        }
        // Somebody else may have brought it meanwhile; the sweep removes ours.
        if fs::symlink_metadata(&there).is_err() {
            fs::rename(&coming, &there)?;
        }
    }
    Ok(())
}

struct Tree<'a> {
    store: &'a Path,
    prefix: &'a str,
    /// Directories with the permissions and the time that they shall have.
    dirs: Vec<(PathBuf, u32, u64)>,
    made: HashSet<PathBuf>,
}

impl Tree<'_> {
    fn take<R: Read>(&mut self, mut entry: tar::Entry<'_, R>, expected: &[String]) -> io::Result<()> {
        let bad =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the archive holds {what}"));
        let path = entry.path()?.into_owned();
        let mut parts = path.components();
        let Some(Component::Normal(first)) = parts.next() else { return Err(bad("a path that is none")) };
        let first = first.to_str().filter(|first| expected.iter().any(|name| name == first));
        let first = first.ok_or_else(|| bad("what was not asked for"))?;
        let rest = parts.as_path();
        if !rest.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(bad("a path that is none"));
        }
        let top = self.store.join(format!("{}{first}", self.prefix));
        let place = if rest.as_os_str().is_empty() { top } else { top.join(rest) };
        let parent = place.parent().expect("it lies in the store");
        // Only through directories that were made here, and never through a link.
        if parent != self.store && !self.made.contains(parent) {
            return Err(bad("a file in no directory"));
        }
        let (mode, mtime) = (entry.header().mode()? & 0o777, entry.header().mtime()?);
        match entry.header().entry_type() {
            EntryType::Directory => {
                fs::create_dir(&place)?;
                self.made.insert(place.clone());
                self.dirs.push((place, mode, mtime));
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous => {
                let mut file = File::options().write(true).create_new(true).mode(0o600).open(&place)?;
                let written = io::copy(&mut entry, &mut file)?;
                if written != entry.header().entry_size()? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                file.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| bad("a link to nothing"))?;
                std::os::unix::fs::symlink(target, &place)?;
            }
            _ => return Err(bad("more than files, directories and links")),
        }
        set_time(&place, mtime)
    }
}

fn set_time(path: &Path, mtime: u64) -> io::Result<()> {
    let time = Timespec { tv_sec: mtime.cast_signed(), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn header(kind: EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(1);
        header
    }

    #[test]
    fn store_paths_appear_whole_with_their_permissions_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["abc-x".to_owned()];
        let good = archive(|tar| {
            let (mut folder, mut file) =
                (header(EntryType::Directory, 0, 0o555), header(EntryType::Regular, 2, 0o555));
            let mut link = header(EntryType::Symlink, 0, 0o777);
            tar.append_data(&mut folder, "abc-x", io::empty()).unwrap();
            tar.append_data(&mut file, "abc-x/run", &b"hi"[..]).unwrap();
            tar.append_link(&mut link, "abc-x/link", "run").unwrap();
        });
        unpack(&good[..], dir.path(), ".1.", &names).unwrap();
        assert_eq!(fs::read(dir.path().join("abc-x/link")).unwrap(), b"hi");
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("abc-x"), mode("abc-x/run")), (0o555, 0o555));
        let cut = unpack(&good[..700], dir.path(), ".2.", &names);
        assert!(cut.is_err());
        let strange = |path: &str| {
            let mut bytes = archive(|tar| {
                let mut file = header(EntryType::Regular, 2, 0o644);
                tar.append_data(&mut file, "abc-x", &b"hi"[..]).unwrap();
            });
            bytes[..path.len() + 1].copy_from_slice([path.as_bytes(), &[0]].concat().as_slice());
            let mut first = tar::Header::from_byte_slice(&bytes[..512]).clone();
            first.set_cksum();
            bytes[..512].copy_from_slice(first.as_bytes());
            unpack(&bytes[..], dir.path(), ".3.", &names)
        };
        for path in ["../abc-x", "/abc-x", "other-y", "abc-x/in/no/dir", "abc-x/../../y"] {
            assert!(strange(path).is_err(), "{path}");
        }
    }
}
