//! Store paths that come from the server ([`calve_wire::seed`]), unpacked and checked one by one: by a child of init, or by who
//! lends a host.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use calve_nix::{HashReader, NarEvent, NarReader, StorePath};
use calve_wire::seed::{END, Header, LINE_MAX_BYTES};

/// What a path is called until it is whole: no store path begins so.
const UNDER_WAY: &str = ".calve-";
/// Bytes read at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// Says which paths `store` has, then takes those that come, to the end.
pub fn take(store: &Path, mut out: impl Write, input: impl Read) -> io::Result<()> {
    fs::create_dir_all(store)?;
    for name in sweep(store)? {
        writeln!(out, "{name}")?;
    }
    writeln!(out)?;
    out.flush()?;
    receive(store, UNDER_WAY, input)
}

/// Takes the paths that come, to the end. Until it is whole, each is called by this prefix and its name.
pub fn receive(store: &Path, prefix: &str, input: impl Read) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    loop {
        let line = line(&mut input)?;
        if line == END {
            return Ok(());
        }
        let header = Header::parse(&line).ok_or_else(|| broken("the server sends what is no store path"))?;
        let place = store.join(&header.base_name);
        let under_way = store.join(format!("{prefix}{}", header.base_name));
        let taken = unpack(&header, &mut input, &under_way);
        if let Err(error) = taken {
            remove(&under_way)?;
            return Err(io::Error::new(error.kind(), format!("{}: {error}", header.base_name)));
        }
        match fs::symlink_metadata(&place) {
            // Sent twice: it is whole already.
            Ok(_) => remove(&under_way)?,
            Err(_) => fs::rename(&under_way, &place)?,
        }
    }
}

/// The whole paths; what was under way when somebody was killed is removed.
fn sweep(store: &Path) -> io::Result<BTreeSet<String>> {
    let mut whole = BTreeSet::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Some(name) if name.starts_with(UNDER_WAY) => remove(&entry.path())?,
            Some(name) if StorePath::from_base_name(name).is_ok() => {
                whole.insert(name.to_owned());
            }
            _ => {}
        }
    }
    Ok(whole)
}

fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    input.take(LINE_MAX_BYTES as u64).read_until(b'\n', &mut line)?;
    match (line.pop(), String::from_utf8(line)) {
        (Some(b'\n'), Ok(line)) => Ok(line),
        (None, _) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the closure ended early")),
        _ => Err(broken("the server sends what is no store path")),
    }
}

/// Unpacks an archive and compares its hash.
fn unpack(header: &Header, input: &mut impl Read, to: &Path) -> io::Result<()> {
    let hashed = HashReader::new(input.take(header.nar_size));
    // Not buffered again: what is read ahead of the archive would not count.
    let mut nar = NarReader::with_size(hashed, header.nar_size);
    let mut open: Vec<PathBuf> = Vec::new();
    while let Some(event) = nar.next_event().map_err(io::Error::other)? {
        match event {
            NarEvent::Enter { name } => {
                let dir = place(&open, to, &name);
                DirBuilder::new().mode(0o755).create(&dir)?;
                open.push(dir);
            }
            NarEvent::Leave => {
                let dir = open.pop().expect("a directory was entered");
                seal(&File::open(&dir)?, 0o555)?;
            }
            NarEvent::Symlink { name, target } => {
                symlink(OsStr::from_bytes(&target), place(&open, to, &name))?
            }
            NarEvent::File { name, executable, size, .. } => {
                let path = place(&open, to, &name);
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
                let copied = io::copy(&mut nar.contents(), &mut file)?;
                if copied != size {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                seal(&file, if executable { 0o555 } else { 0o444 })?;
            }
        }
    }
    let (hash, size) = nar.into_inner().finish();
    if hash.to_hex() != header.nar_hash || size != header.nar_size {
        return Err(broken("its archive is not the one that was announced: its hash is another"));
    }
    Ok(())
}

/// Where a node lies: below the directory that is open, or where the root shall be.
fn place(open: &[PathBuf], root: &Path, name: &[u8]) -> PathBuf {
    open.last().map_or(root.to_owned(), |dir| dir.join(OsStr::from_bytes(name)))
}

/// Mode and time as every path in a store has them.
fn seal(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1))
}

/// Removes a tree whose directories may be sealed; absence is success.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(metadata) if metadata.is_dir() => {
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
            for entry in fs::read_dir(path)? {
                remove(&entry?.path())?;
            }
            fs::remove_dir(path)
        }
        _ => fs::remove_file(path),
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use calve_nix::{HashWriter, NarWriter};

    use super::*;

    const A: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";
    const B: &str = "1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b";

    fn archive(text: &[u8]) -> Vec<u8> {
        let mut nar = NarWriter::new(Vec::new()).expect("in memory");
        nar.begin_directory(b"").expect("in order");
        nar.file(b"tool", true, text.len() as u64, &mut { text }).expect("in order");
        nar.symlink(b"way", b"tool").expect("in order");
        nar.end_directory().expect("in order");
        nar.finish().expect("whole")
    }

    fn sent(name: &str, archive: &[u8]) -> Vec<u8> {
        let mut hash = HashWriter::default();
        hash.write_all(archive).expect("in memory");
        let nar_hash = hash.finish().0.to_hex();
        let header = Header { base_name: name.to_owned(), nar_hash, nar_size: archive.len() as u64 };
        [format!("{header}\n").as_bytes(), archive].concat()
    }

    fn seed(store: &Path, input: &[u8]) -> (io::Result<()>, String) {
        let mut said = Vec::new();
        let taken = take(store, &mut said, input);
        (taken, String::from_utf8(said).expect("names"))
    }

    #[test]
    fn a_closure_comes_path_by_path_and_goes_on_where_it_was_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("nix/store");
        let (a, b) = (sent(A, &archive(b"alpha")), sent(B, &archive(&vec![7; 300_000])));
        let whole = [&a[..], &b, b"end\n"].concat();
        // Cut within the second path: the first is there, of the second nothing.
        let (cut, said) = seed(&store, &whole[..a.len() + b.len() / 2]);
        assert!(cut.is_err());
        assert_eq!(said, "\n");
        assert!(store.join(A).exists() && !store.join(B).exists());
        // Killed in the middle of it, which leaves something behind.
        fs::create_dir(store.join(format!("{UNDER_WAY}{B}"))).expect("made");
        let (taken, said) = seed(&store, &[&b[..], b"end\n"].concat());
        taken.expect("taken");
        assert_eq!(said, format!("{A}\n\n"));
        assert_eq!(fs::read(store.join(A).join("way")).expect("a link to it"), b"alpha");
        let mode = fs::metadata(store.join(B).join("tool")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
        assert_eq!(fs::read_dir(&store).expect("there").count(), 2);
        // Sent again, nothing changes.
        seed(&store, &whole).0.expect("taken");
    }

    #[test]
    fn bytes_that_are_not_the_announced_ones_never_get_their_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let archive = archive(b"alpha");
        let mut spoilt = sent(A, &archive);
        let at = spoilt.windows(5).position(|five| five == b"alpha").expect("its contents");
        spoilt[at] ^= 1;
        let (taken, _) = seed(dir.path(), &[&spoilt[..], b"end\n"].concat());
        assert!(taken.expect_err("refused").to_string().contains("hash"));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        for bad in ["path ../x 00 7\n", "nonsense\n", ""] {
            assert!(seed(dir.path(), bad.as_bytes()).0.is_err(), "{bad}");
        }
    }
}
