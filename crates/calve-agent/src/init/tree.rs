//! Trees in and out of the machine, done by a child of init: what it does wrong stays in that child.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use super::packet::{NOT_FOUND_CODE, Work};

/// Does the work on standard input and output; a failure is a sentence on standard error and code 1.
pub fn perform(work: &Work) -> i32 {
    let done = match work {
        Work::ReadTar { path } => pack(Path::new(path), io::stdout().lock()).map_err(|error| (path, error)),
        Work::WriteTar { path } => unpack(Path::new(path), io::stdin().lock()).map_err(|error| (path, error)),
        Work::Seed { path } => {
            calve_agent::seed::take(Path::new(path), io::stdout().lock(), io::stdin().lock())
                .map_err(|error| (path, error))
        }
        Work::CopyTree { from, to } => copy(Path::new(from), Path::new(to)).map_err(|error| (to, error)),
        Work::Execute { .. } => return 1,
    };
    match done {
        Ok(()) => 0,
        Err((path, error)) => {
            let missing = error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err();
            let _ = match missing {
                true => write!(io::stderr(), "{path} does not exist in the machine"),
                false => write!(io::stderr(), "{path}: {}", sentence(&error)),
            };
            if missing { NOT_FOUND_CODE } else { 1 }
        }
    }
}

/// The error with everything behind it: the archive crate keeps the reason in the source.
fn sentence(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.get_ref().and_then(|inner| inner.source());
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Writes an archive of `path`; entries are named from its last component on, links are kept as links.
fn pack(path: &Path, out: impl Write) -> io::Result<()> {
    let name = path.file_name().map_or(Path::new("."), Path::new);
    // Who asks for a link by name wants what it points to; links further down stay links. Before the archive begins, which
    // writes its end when it is dropped: of what does not exist there must be no byte.
    let path = fs::canonicalize(path)?;
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, out));
    archive.follow_symlinks(false);
    append(&mut archive, &path, name)?;
    archive.into_inner()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        // Gone since the directory was read: a live machine goes on while it is being copied.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    if kind.is_file() {
        return append_file(archive, path, name, &metadata);
    }
    archive.append_path_with_name(path, name)?;
    if kind.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            append(archive, &entry.path(), &name.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A file may grow or shrink while it is read; the archive holds exactly as many bytes as its header says.
fn append_file(
    archive: &mut tar::Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    let content = File::open(path)?.chain(io::repeat(0)).take(metadata.len());
    archive.append_data(&mut header, name, content)
}

/// Unpacks an archive below `directory`; refuses entries that would lie outside, also through links.
fn unpack(directory: &Path, mut input: impl Read) -> io::Result<()> {
    if !fs::metadata(directory)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut archive = tar::Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.unpack_in(directory)? {
            let name = entry.path()?.display().to_string();
            return Err(io::Error::other(format!("the archive's entry {name:?} lies outside of it")));
        }
    }
    // The sender may still be writing the padding of its last block.
    io::copy(&mut input, &mut io::sink())?;
    Ok(())
}

/// Copies a tree; everything becomes writable for its owner, as store paths are not.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.permissions().mode() | 0o200))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive_of(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            // Written by hand: the builder refuses the names that are tested here.
            header.as_gnu_mut().expect("made so").name[..name.len()].copy_from_slice(name.as_bytes());
            if *kind == tar::EntryType::Symlink {
                header.set_link_name(content).expect("short");
                header.set_size(0);
                header.set_cksum();
                archive.append(&header, io::empty()).expect("in memory");
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                archive.append(&header, content.as_bytes()).expect("in memory");
            }
        }
        archive.into_inner().expect("in memory")
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let from = tempfile::tempdir().expect("a directory");
        let tree = from.path().join("tree");
        fs::create_dir_all(tree.join("sub")).expect("made");
        fs::write(tree.join("sub/file"), b"content").expect("written");
        fs::set_permissions(tree.join("sub/file"), fs::Permissions::from_mode(0o750)).expect("set");
        symlink("sub/file", tree.join("link")).expect("made");
        let mut bytes = Vec::new();
        pack(&tree, &mut bytes).expect("packed");
        let to = tempfile::tempdir().expect("a directory");
        unpack(to.path(), bytes.as_slice()).expect("unpacked");
        let back = to.path().join("tree");
        assert_eq!(fs::read(back.join("sub/file")).expect("there"), b"content");
        assert_eq!(fs::metadata(back.join("sub/file")).expect("there").permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_link(back.join("link")).expect("a link"), Path::new("sub/file"));
    }

    #[test]
    fn entries_outside_of_the_directory_are_refused() {
        let outside = tempfile::tempdir().expect("a directory");
        let target = outside.path().to_str().expect("ASCII");
        let climbing = [("../evil", tar::EntryType::Regular, "x")];
        let through_link =
            [("door", tar::EntryType::Symlink, target), ("door/evil", tar::EntryType::Regular, "x")];
        for entries in [climbing.as_slice(), &through_link] {
            let into = outside.path().join("into");
            fs::create_dir_all(&into).expect("made");
            assert!(unpack(&into, archive_of(entries).as_slice()).is_err());
            assert!(!outside.path().join("evil").exists());
            fs::remove_dir_all(&into).expect("removed");
        }
    }

    #[test]
    fn a_copied_tree_is_writable() {
        let from = tempfile::tempdir().expect("a directory");
        fs::write(from.path().join("file"), b"x").expect("written");
        fs::set_permissions(from.path().join("file"), fs::Permissions::from_mode(0o444)).expect("set");
        let to = tempfile::tempdir().expect("a directory");
        let to = to.path().join("deep/er");
        copy(from.path(), &to).expect("copied");
        copy(from.path(), &to).expect("copied again");
        assert_eq!(fs::metadata(to.join("file")).expect("there").permissions().mode() & 0o777, 0o644);
    }
}
