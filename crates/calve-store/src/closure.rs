//! A closure with the places of its paths on this host.

use std::path::PathBuf;

use calve_nix::StorePath;

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
