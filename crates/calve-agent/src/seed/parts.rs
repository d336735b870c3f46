//! An archive that comes in parts: bytes, and what stands in the archives of other paths.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;

use calve_tree::NarView;
use calve_wire::seed::{HashAt, Part};

use super::{broken, line};

/// Trees that stay open between parts: a path has parts of some few others, in turn.
const OPEN_MAX: usize = 4;

/// The paths of which parts may be copied.
pub struct Bases {
    /// Directories in which they may lie; the first that has one counts.
    dirs: Vec<PathBuf>,
    /// The last used first.
    open: VecDeque<(String, NarView)>,
}

impl Bases {
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, open: VecDeque::new() }
    }

    /// The archive of the path with this base name, as it lies there.
    fn view(&mut self, name: &str) -> io::Result<&NarView> {
        let view = match self.open.iter().position(|(open, _)| open == name) {
            Some(at) => self.open.remove(at).expect("it was found"),
            None => (name.to_owned(), self.open_view(name)?),
        };
        self.open.truncate(OPEN_MAX - 1);
        self.open.push_front(view);
        Ok(&self.open[0].1)
    }

    fn open_view(&self, name: &str) -> io::Result<NarView> {
        let mut places = self.dirs.iter().map(|dir| dir.join(name));
        let place = places.find(|place| place.symlink_metadata().is_ok());
        let place = place.ok_or_else(|| broken(&format!("it is a copy of {name}, which is not here")))?;
        let view = NarView::open(&place).map_err(io::Error::other)?;
        view.ok_or_else(|| broken(&format!("it is a copy of {name}, which has too many files")))
    }
}

/// Gives the bytes of one archive out of its parts.
pub struct Archive<'a, R> {
    input: &'a mut R,
    bases: &'a mut Bases,
    /// Bytes of the archive that are not given yet.
    left: u64,
    /// Those of them that come next from the input.
    sent: u32,
    /// Those that were copied, and how many of them are given.
    copied: (Vec<u8>, usize),
}

impl<'a, R: BufRead> Archive<'a, R> {
    /// One of this size in bytes.
    pub fn new(input: &'a mut R, bases: &'a mut Bases, size: u64) -> Self {
        Self { input, bases, left: size, sent: 0, copied: (Vec::new(), 0) }
    }

    fn next_part(&mut self) -> io::Result<()> {
        let strange = || broken("the server sends what is no part of an archive");
        let part = Part::parse(&line(self.input)?).ok_or_else(strange)?;
        let (Part::Bytes(len) | Part::Copy { len, .. }) = part;
        if u64::from(len) > self.left {
            return Err(broken("its archive is larger than it was announced"));
        }
        let Part::Copy { from, at, len, hashes } = part else {
            self.sent = len;
            return Ok(());
        };
        let (bytes, given) = &mut self.copied;
        *given = 0;
        bytes.resize(len as usize, 0);
        self.bases.view(&from)?.read_at(bytes, at).map_err(io::Error::other)?;
        for _ in 0..hashes {
            let HashAt { at, hash } = HashAt::parse(&line(self.input)?).ok_or_else(strange)?;
            let room = bytes.get_mut(at as usize..).and_then(|behind| behind.get_mut(..hash.len()));
            room.ok_or_else(strange)?.copy_from_slice(hash.as_bytes());
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Archive<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.sent == 0 && self.copied.1 == self.copied.0.len() {
            self.next_part()?;
        }
        let read = if self.sent > 0 {
            let most = buffer.len().min(self.sent as usize);
            let read = self.input.read(&mut buffer[..most])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.sent -= read as u32;
            read
        } else {
            let (bytes, given) = &mut self.copied;
            let read = (&bytes[*given..]).read(buffer)?;
            *given += read;
            read
        };
        self.left -= read as u64;
        Ok(read)
    }
}
