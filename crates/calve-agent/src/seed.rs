//! Store paths that come from the server ([`calve_wire::seed`]), unpacked and checked one by one: by a child of init, or by who
//! lends a host.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use calve_nix::nar::NarProblem;
use calve_nix::{HashReader, NarEvent, NarReadError, NarReader, StorePath};
use calve_wire::seed::{END, Header, LINE_MAX_BYTES, WINDOW_LOG_MAX};
use zstd::stream::read::Decoder;

use parts::{Archive, Bases};

mod parts;

/// The store of a host, whose paths those that come may be copies of.
const HOST_STORE: &str = "/nix/store";

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

/// Takes the paths that come, to the end. Until it is whole, each is called by this prefix and its name. Parts are copied from
/// what is in `store` or in the host's own.
pub fn receive(store: &Path, prefix: &str, input: impl Read) -> io::Result<()> {
    let mut frame = Decoder::new(input)?.single_frame();
    frame.window_log_max(WINDOW_LOG_MAX)?;
    receive_plain(store, prefix, frame)
}

/// The same out of the frame.
pub fn receive_plain(store: &Path, prefix: &str, input: impl Read) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut bases = Bases::new(vec![store.to_owned(), HOST_STORE.into()]);
    loop {
        let line = line(&mut input)?;
        if line == END {
            // The frame has an end of its own, without which whoever sends it is not rid of it.
            return match input.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(broken("the server sends more than it announced")),
            };
        }
        let header = Header::parse(&line).ok_or_else(|| broken("the server sends what is no store path"))?;
        let place = store.join(&header.base_name);
        let under_way = store.join(format!("{prefix}{}", header.base_name));
        let archive = Archive::new(&mut input, &mut bases, header.nar_size);
        let taken = unpack(&header, archive, &under_way);
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
fn unpack(header: &Header, archive: impl Read, to: &Path) -> io::Result<()> {
    let hashed = HashReader::new(archive);
    // Not buffered again: what is read ahead of the archive would not count.
    let mut nar = NarReader::with_size(hashed, header.nar_size);
    let mut open: Vec<PathBuf> = Vec::new();
    while let Some(event) = nar.next_event().map_err(|error| reason(error.into()))? {
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
                let copied = io::copy(&mut nar.contents(), &mut file).map_err(reason)?;
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

/// What the parts of an archive said is wrong with them, where that ended it.
fn reason(error: io::Error) -> io::Error {
    match error.downcast::<NarReadError>() {
        Ok(NarReadError { problem: NarProblem::Io(source), .. }) => source,
        Ok(error) => error.into(),
        Err(error) => error,
    }
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
mod tests;
