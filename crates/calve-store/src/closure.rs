//! A closure with the places of its paths on this host.

use std::io::Write;
use std::path::{Path, PathBuf};

use calve_nix::{HashWriter, StorePath};

/// A store path and where its bytes lie on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClosurePath {
    /// The store path.
    pub path: StorePath,
    /// Where it lies: `/nix/store/…` itself, or inside a private store.
    pub host_path: PathBuf,
}

/// Store paths with everything that they refer to; sorted, without doubles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Closure {
    /// The paths.
    pub paths: Vec<ClosurePath>,
}

impl Closure {
    /// A closure of `paths`, in any order.
    pub fn new(mut paths: Vec<ClosurePath>) -> Self {
        paths.sort_unstable();
        paths.dedup_by(|a, b| a.path == b.path);
        Self { paths }
    }

    /// What tells closures apart: SHA-256, in 64 hexadecimal digits, over the base names, each with a line feed behind
    /// it. Where the paths lie on this host does not matter.
    pub fn digest(&self) -> String {
        let mut hash = HashWriter::default();
        for path in &self.paths {
            writeln!(hash, "{}", path.path.base_name()).expect("hashing does not fail");
        }
        hash.finish().0.to_hex()
    }

    /// Where the path lies on this host; none where the closure does not hold it.
    pub fn host_path_of(&self, path: &StorePath) -> Option<&Path> {
        let at = self.paths.binary_search_by(|candidate| candidate.path.cmp(path)).ok()?;
        Some(&self.paths[at].host_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_is_told_by_its_paths_alone() {
        let at = |base: &str, host: &str| ClosurePath {
            path: StorePath::from_base_name(base).unwrap(),
            host_path: host.into(),
        };
        let (a, b) = ("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a", "1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b");
        let one = Closure::new(vec![at(b, "/x/b"), at(a, "/x/a"), at(b, "/x/b")]);
        let other = Closure::new(vec![at(a, "/y/a"), at(b, "/y/b")]);
        // `printf '0c…-a\n1c…-b\n' | sha256sum`
        assert_eq!(one.digest(), "dd508fac26d94108a3459d30dd0f88fc3cbf6ad37dd2f9f582c555a47d10347b");
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), Closure::new(vec![at(a, "/x/a")]).digest());
        assert_eq!(one.host_path_of(&StorePath::from_base_name(b).unwrap()), Some(Path::new("/x/b")));
    }
}
