//! How a closure comes to a machine over its agent's link, path by path.
//!
//! ```text
//!  agent   base name of a path that it has, whole and checked │ LF   …   LF
//!  server  [`Header`] │ LF │ archive (NAR)   for each path that is missing   …   [`END`] │ LF
//! ```
//! The agent unpacks a path beside its place, and moves it there once size and hash of its archive are right: what has its
//! name is whole. A connection that breaks costs the path that was under way, and no other.

use std::fmt;

/// Longest line in bytes, with its line feed.
pub const LINE_MAX_BYTES: usize = 512;
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

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path {} {} {}", self.base_name, self.nar_hash, self.nar_size)
    }
}

impl Header {
    /// Reads one; none where the line is no header. A base name never leads out of a directory.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (Some("path"), Some(base_name), Some(nar_hash), Some(size), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        calve_nix::StorePath::from_base_name(base_name).ok()?;
        let hash_is_one = nar_hash.len() == 64 && nar_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let nar_size = size.parse().ok().filter(|_| hash_is_one)?;
        Some(Self { base_name: base_name.to_owned(), nar_hash: nar_hash.to_ascii_lowercase(), nar_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
