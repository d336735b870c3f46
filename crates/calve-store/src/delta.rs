//! The archive of a path told by what is new in it, to somebody who has paths like it, of which only names are known.
//!
//! ```text
//!  foo-1.1 here ─ normalise, cut ─▶ chunk ─ in foo-1.0, which is there as well? ─▶ copy 3 KiB from byte 700, with these hash parts
//!                                     └──── not there ─▶ its bytes
//! ```
//! Whoever gets it needs no chunks of its own, nor to know how archives are cut: it reads the archive of what lies there at a
//! place ([`calve_tree::NarView`]). What comes of it is only as right as what lies there, so its hash is to be compared.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;

use crate::archive::write_nar;
use crate::chunk::ChunkId;
use crate::cut::{Cutter, cut};
use crate::diff::split_name;
use crate::normal::Restorer;
use crate::{PathInfo, StoreError};

/// Paths among which the chunks of one are looked for. Each is read whole.
const LIKES_MAX: usize = 4;
/// Archives below this size are told whole: to find them elsewhere takes as many bytes.
const LIKE_MIN_BYTES: u64 = 4096;

/// Paths that the other side has, and that are here as well.
#[derive(Debug, Default)]
pub struct Held(HashMap<String, Vec<HeldPath>>);

#[derive(Debug)]
struct HeldPath {
    info: PathInfo,
    host_path: PathBuf,
}

/// A part of an archive.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// What stands in the archive of another path.
    Copy(&'a Copied<'a>),
}

/// What stands in the archive of another path, but for hash parts.
#[derive(Debug)]
pub struct Copied<'a> {
    /// The other path.
    pub from: &'a StorePath,
    /// Where it begins there.
    pub at: u64,
    /// How many bytes it has, at most [`crate::chunk::CHUNK_MAX`].
    pub len: u32,
    /// What stands in it here, each behind its place in these bytes.
    pub hashes: Vec<(usize, &'a [u8])>,
}

impl Part<'_> {
    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "no part is empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Copy(copied) => copied.len.into(),
        }
    }
}

impl Held {
    /// Takes up a path that the other side has; its files lie at `host_path` here.
    pub fn add(&mut self, info: PathInfo, host_path: PathBuf) {
        let package = split_name(info.path.name()).0.to_owned();
        self.0.entry(package).or_default().push(HeldPath { info, host_path });
    }

    /// Paths of the same package, at best of the same name, the last ones first.
    fn likes(&self, info: &PathInfo) -> Vec<&HeldPath> {
        if info.nar_size < LIKE_MIN_BYTES {
            return Vec::new();
        }
        let name = info.path.name();
        let found = self.0.get(split_name(name).0).into_iter().flatten().rev();
        let mut found: Vec<_> = found.filter(|held| held.info.nar_size >= LIKE_MIN_BYTES).collect();
        found.sort_by_key(|held| held.info.path.name() != name);
        found.truncate(LIKES_MAX);
        found
    }
}

/// Tells the archive of a path whose files lie at `host_path`, part by part in order. An error of `each` ends it.
pub fn tell(
    info: &PathInfo,
    host_path: &Path,
    held: &Held,
    mut each: impl FnMut(Part<'_>) -> io::Result<()>,
) -> Result<(), StoreError> {
    let likes = held.likes(info);
    let there = places(&likes);
    let references = info.counted_references();
    let mut restorer = Restorer::new(&[], &references).expect("no positions make sense");
    let mut begin = 0;
    let cutter = Cutter::new(&references, None, |bytes, positions, _| {
        restorer.extend(positions).map_err(io::Error::other)?;
        let at = begin;
        begin += bytes.len() as u64;
        // Where nothing can be found nothing is looked for: the hash is as dear as the rest.
        let found = if there.is_empty() { None } else { there.get(&ChunkId::of(bytes)) };
        if let Some(&(like, place)) = found {
            let hashes = restorer.hashes_in(at, bytes.len() as u64).collect();
            let from = &likes[like].info.path;
            return each(Part::Copy(&Copied { from, at: place, len: bytes.len() as u32, hashes }));
        }
        let mut restored = bytes.to_vec();
        restorer.restore(&mut restored, at);
        each(Part::Bytes(&restored))
    });
    let finished = write_nar(host_path, cutter)?.finish();
    finished.map(drop).map_err(StoreError::io("archive", host_path))
}

/// Where which chunk is: in which of the paths, and at which byte of its archive. A path that cannot be read here any more
/// has none.
fn places(likes: &[&HeldPath]) -> HashMap<ChunkId, (usize, u64)> {
    let mut places = HashMap::new();
    for (like, held) in likes.iter().enumerate() {
        let write =
            |out: &mut dyn io::Write| write_nar(&held.host_path, out).map(drop).map_err(io::Error::other);
        let Ok(recipe) = cut(&held.info.counted_references(), None, write, |_| Ok(())) else { continue };
        let mut at = 0;
        for piece in recipe.pieces {
            places.entry(piece.id).or_insert((like, at));
            at += u64::from(piece.len);
        }
    }
    places
}

#[cfg(test)]
mod tests;
