//! Unpacking what a machine sent. The machine is not trusted: nothing is written outside of the target, whatever names
//! and links its archive holds.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::EntryType;

use crate::failure::{Failure, Outcome};

/// Most things of which it is said that they were left out.
const SKIPPED_SHOWN_MAX: usize = 20;

/// Unpacks an archive whose first entry becomes `target`; gives what was left out because it is neither file, directory
/// nor link. Files appear whole or not at all.
pub fn unpack(archive: impl Read, target: &Path) -> Outcome<Vec<String>> {
    let mut archive = tar::Archive::new(archive);
    let mut unpacker =
        Unpacker { target: target.to_owned(), top: None, modes: Vec::new(), skipped: Vec::new() };
    for entry in archive.entries().map_err(unreadable)? {
        unpacker.entry(entry.map_err(unreadable)?)?;
    }
    if unpacker.top.is_none() {
        return Err(Failure::failed("the machine sent an archive with nothing in it"));
    }
    // Last and innermost first: a directory that is not writable could not be filled.
    for (directory, mode) in unpacker.modes.iter().rev() {
        fs::set_permissions(directory, Permissions::from_mode(*mode))
            .map_err(|error| failed(directory, error))?;
    }
    Ok(unpacker.skipped)
}

struct Unpacker {
    target: PathBuf,
    /// What the names of all entries begin with: the first entry's.
    top: Option<PathBuf>,
    modes: Vec<(PathBuf, u32)>,
    skipped: Vec<String>,
}

fn unreadable(error: io::Error) -> Failure {
    Failure::failed("the copy broke off").caused_by(error)
}

fn failed(path: &Path, error: io::Error) -> Failure {
    Failure::failed(format!("{} cannot be written", path.display())).caused_by(error)
}

fn hostile(name: &Path) -> Failure {
    Failure::failed(format!("the machine sent {}, which would lie outside of the target", name.display()))
        .hint("what was copied before it is there; the machine should not be trusted")
}

impl Unpacker {
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Outcome<()> {
        let name = entry.path().map_err(unreadable)?.into_owned();
        let path = self.place(&name)?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(path, mode),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&mut entry, &path, mode)
            }
            EntryType::Symlink => {
                let to = link_target(&entry, &name)?;
                replace(&path, |new| symlink(&to, new))
            }
            EntryType::Link => {
                let to = self.place(&link_target(&entry, &name)?)?;
                // Linking to a link would make what it leads to writable under a new name.
                if !fs::symlink_metadata(&to).is_ok_and(|metadata| metadata.is_file()) {
                    return Err(hostile(&name));
                }
                replace(&path, |new| fs::hard_link(&to, new))
            }
            EntryType::XGlobalHeader => Ok(()),
            _ => {
                if self.skipped.len() < SKIPPED_SHOWN_MAX {
                    self.skipped.push(format!("{} (a device, pipe or socket)", name.display()));
                }
                Ok(())
            }
        }
    }

    /// Where an entry of this name goes; the directories on the way are real ones.
    fn place(&mut self, name: &Path) -> Outcome<PathBuf> {
        let mut plain = PathBuf::new();
        for component in name.components() {
            match component {
                Component::Normal(part) => plain.push(part),
                Component::CurDir => {}
                Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                    return Err(hostile(name));
                }
            }
        }
        let top = self.top.get_or_insert_with(|| plain.components().take(1).collect());
        let inside = plain.strip_prefix(top).map_err(|_| hostile(name))?.to_owned();
        let mut path = self.target.clone();
        for part in inside.components() {
            if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                return Err(hostile(name));
            }
            path.push(part);
        }
        Ok(path)
    }

    fn directory(&mut self, path: PathBuf, mode: u32) -> Outcome<()> {
        match fs::create_dir(&path) {
            Ok(()) => {
                self.modes.push((path, mode));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The target itself may be the user's own link to a directory.
                let real = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
                if real { Ok(()) } else { Err(failed(&path, error).hint("something else has its name")) }
            }
            Err(error) => Err(failed(&path, error)),
        }
    }

    fn file(&mut self, entry: &mut tar::Entry<'_, impl Read>, path: &Path, mode: u32) -> Outcome<()> {
        let modified = entry
            .header()
            .mtime()
            .ok()
            .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
        let mut broken = None;
        let made = replace(path, |new| {
            let mut file = File::options().write(true).create_new(true).mode(mode).open(new)?;
            let size = entry.size();
            let copied = io::copy(entry, &mut file).and_then(|length| match length == size {
                true => Ok(()),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            });
            if let Err(error) = copied {
                broken = Some(io::Error::new(error.kind(), error.to_string()));
                return Err(error);
            }
            if let Some(modified) = modified {
                file.set_modified(modified)?;
            }
            Ok(())
        });
        made.map_err(|failure| broken.map_or(failure, unreadable))
    }
}

fn link_target(entry: &tar::Entry<'_, impl Read>, name: &Path) -> Outcome<PathBuf> {
    let target = entry.link_name().map_err(unreadable)?;
    target.map(std::borrow::Cow::into_owned).ok_or_else(|| hostile(name))
}

/// Makes something under a passing name and moves it to its own, over what is there.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Outcome<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept: String = name.chars().take(64).collect();
    let new = path.with_file_name(format!(".{kept}.calve-{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let made = make(&new).and_then(|()| fs::rename(&new, path));
    made.map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(path, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o6755);
        header.set_mtime(7);
        header
    }

    /// An archive of names with contents (`d` a directory, `f…` a file, `l…` a link, `h…` a hard link), names unchecked.
    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, what) in entries {
            let (kind, rest) = what.split_at(1);
            let mut header = match kind {
                "d" => header(EntryType::Directory, 0),
                "f" => header(EntryType::Regular, rest.len() as u64),
                "l" => header(EntryType::Symlink, 0),
                "p" => header(EntryType::Fifo, 0),
                _ => header(EntryType::Link, 0),
            };
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            if matches!(kind, "l" | "h") {
                old.linkname[..rest.len()].copy_from_slice(rest.as_bytes());
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            if kind == "f" {
                bytes.extend_from_slice(rest.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    #[test]
    fn a_tree_becomes_the_target_without_setuid_bits() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new");
        let tar = archive(&[
            ("etc/", "d"),
            ("etc/sub/", "d"),
            ("etc/sub/f", "fhello"),
            ("etc/l", "l/nowhere"),
            ("etc/h", "hetc/sub/f"),
            ("etc/p", "p"),
        ]);
        let skipped = unpack(tar.as_slice(), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("sub/f")).unwrap(), "hello");
        assert_eq!(fs::read_to_string(target.join("h")).unwrap(), "hello");
        assert_eq!(fs::metadata(target.join("sub/f")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_link(target.join("l")).unwrap(), Path::new("/nowhere"));
        assert_eq!(skipped, ["etc/p (a device, pipe or socket)"]);
        // Again, over itself.
        unpack(tar.as_slice(), &target).unwrap();
    }

    #[test]
    fn a_file_replaces_a_file_and_names_may_be_dots() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        fs::write(&target, "old").unwrap();
        unpack(archive(&[("./hosts", "fnew")]).as_slice(), &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        let target = dir.path().join("tree");
        unpack(archive(&[("./", "d"), ("./f", "f1")]).as_slice(), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "1");
    }

    #[test]
    fn nothing_is_written_outside_of_the_target() {
        for entries in [
            &[("t/", "d"), ("t/../evil", "fx")][..],
            &[("t/", "d"), ("/evil", "fx")],
            &[("t/", "d"), ("other", "fx")],
            &[("t/", "d"), ("t/l", "l.."), ("t/l/evil", "fx")],
            &[("t/", "d"), ("t/l", "l../secret"), ("t/h", "ht/l")],
            &[("t/", "d"), ("t/h", "ht/../../secret")],
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("secret"), "s").unwrap();
            let failure = unpack(archive(entries).as_slice(), &dir.path().join("t")).unwrap_err();
            assert!(failure.sentence.contains("outside of the target"), "{entries:?}: {}", failure.sentence);
            assert!(!dir.path().join("evil").exists(), "{entries:?}");
        }
    }

    #[test]
    fn a_file_that_breaks_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[("f", "fhello world")]);
        let failure = unpack(&tar[..515], &dir.path().join("f")).unwrap_err();
        assert_eq!(failure.sentence, "the copy broke off");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(unpack(&[0u8; 1024][..], &dir.path().join("f")).is_err());
    }
}
