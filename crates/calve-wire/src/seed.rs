//! How a closure comes to a machine over its agent's link or a host's session, path by path.
//!
//! ```text
//!  agent   base name of a path that it has, whole and checked │ LF   …   LF
//!  server  one frame of zstd:
//!          [`Header`] │ LF │ parts of its archive (NAR), until it is whole    for each path that is missing   …   [`END`] │ LF
//!  part    [`Part::Bytes`] │ LF │ the bytes
//!          [`Part::Copy`] │ LF │ [`HashAt`] │ LF  …
//! ```
//! The agent unpacks a path beside its place, and moves it there once size and hash of its archive are right: what has its
//! name is whole. A connection that breaks costs the path that was under way, and no other. A part may stand in the archive of
//! another path that the agent has, but for the hash parts of what it refers to: then only these are sent.

use std::fmt;

use calve_nix::store_path::HASH_CHARS;
use calve_nix::{StorePath, base32};

/// Longest line in bytes, with its line feed.
pub const LINE_MAX_BYTES: usize = 512;
/// Most bytes of a part: who copies one holds it in memory.
pub const PART_MAX_BYTES: u32 = 1 << 20;
/// Largest window of the frame, as its logarithm: 8 MiB of memory on the machine.
pub const WINDOW_LOG_MAX: u32 = 23;
/// What comes in place of a header when nothing more comes.
pub const END: &str = "end";

/// What stands before an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `<hash>-<name>`.
    pub base_name: String,
    /// SHA-256 of the archive, 64 hexadecimal digits.
    pub nar_hash: String,
    /// Size of the archive in bytes.
    pub nar_size: u64,
}

/// What stands before a part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// So many bytes follow.
    Bytes(u32),
    /// It stands in the archive of another path.
    Copy {
        /// The other path's base name.
        from: String,
        /// Where it begins there.
        at: u64,
        /// How many bytes it has.
        len: u32,
        /// How many [`HashAt`] follow.
        hashes: u32,
    },
}

/// What a part has at a place where another path's has something else: the hash part of a store path, or some of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashAt {
    /// Where it begins in the part.
    pub at: u32,
    /// The characters.
    pub hash: String,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path {} {} {}", self.base_name, self.nar_hash, self.nar_size)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(len) => write!(f, "bytes {len}"),
            Self::Copy { from, at, len, hashes } => write!(f, "copy {from} {at} {len} {hashes}"),
        }
    }
}

impl fmt::Display for HashAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at, self.hash)
    }
}

impl Header {
    /// Reads one; none where the line is no header. A base name never leads out of a directory.
    pub fn parse(line: &str) -> Option<Self> {
        let ["path", base_name, nar_hash, size] = words(line)? else { return None };
        let hash_is_one = nar_hash.len() == 64 && nar_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let nar_size = size.parse().ok().filter(|_| hash_is_one)?;
        Some(Self { base_name: base_name_of(base_name)?, nar_hash: nar_hash.to_ascii_lowercase(), nar_size })
    }
}

impl Part {
    /// Reads one; none where the line is no part, or one of no bytes or too many.
    pub fn parse(line: &str) -> Option<Self> {
        let len_of = |text: &str| text.parse().ok().filter(|len| (1..=PART_MAX_BYTES).contains(len));
        if let Some(["bytes", len]) = words(line) {
            return Some(Self::Bytes(len_of(len)?));
        }
        let ["copy", from, at, len, hashes] = words(line)? else { return None };
        let (at, len) = (at.parse().ok()?, len_of(len)?);
        let hashes = hashes.parse().ok().filter(|hashes| *hashes <= len)?;
        Some(Self::Copy { from: base_name_of(from)?, at, len, hashes })
    }
}

impl HashAt {
    /// Reads one; none where the line is none.
    pub fn parse(line: &str) -> Option<Self> {
        let [at, hash] = words(line)?;
        let is_one = (1..=HASH_CHARS).contains(&hash.len()) && hash.bytes().all(base32::in_alphabet);
        Some(Self { at: at.parse().ok().filter(|_| is_one)?, hash: hash.to_owned() })
    }
}

/// The words of a line, where it has so many.
fn words<const N: usize>(line: &str) -> Option<[&str; N]> {
    let words: Vec<&str> = line.split(' ').collect();
    words.try_into().ok()
}

fn base_name_of(text: &str) -> Option<String> {
    StorePath::from_base_name(text).ok()?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";

    #[test]
    fn parts_come_back_and_have_a_largest_size() {
        let copy = Part::Copy { from: NAME.to_owned(), at: 1 << 40, len: PART_MAX_BYTES, hashes: 3 };
        for part in [copy, Part::Bytes(1)] {
            assert_eq!(Part::parse(&part.to_string()), Some(part));
        }
        let hash = HashAt { at: 7, hash: "0c0bcb".to_owned() };
        assert_eq!(HashAt::parse(&hash.to_string()), Some(hash));
        for bad in ["bytes 0", "bytes 1048577", "bytes -1", "bytes 1 2", "bytes", "", "copy ../x 0 1 0", END]
        {
            assert_eq!(Part::parse(bad), None, "{bad}");
        }
        for bad in ["0 0 0", "0 1048577 0", "0 1 2", "-1 1 0", "0 1"] {
            assert_eq!(Part::parse(&format!("copy {NAME} {bad}")), None, "{bad}");
        }
        for bad in ["7", "7 ", "7 e", "-7 a", "7 0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq0", "7 /"] {
            assert_eq!(HashAt::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn headers_come_back_and_names_lead_nowhere_else() {
        let header = Header {
            base_name: "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a".to_owned(),
            nar_hash: "0a".repeat(32),
            nar_size: 7,
        };
        assert_eq!(Header::parse(&header.to_string()), Some(header.clone()));
        for bad in ["../../etc", ".", "", "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a/b", "etc"] {
            let bad = Header { base_name: bad.to_owned(), ..header.clone() };
            assert_eq!(Header::parse(&bad.to_string()), None, "{bad}");
        }
        for bad in [END, "path", "path 0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a 0a 7"] {
            assert_eq!(Header::parse(bad), None, "{bad}");
        }
    }
}
