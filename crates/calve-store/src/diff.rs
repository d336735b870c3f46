//! What a closure consists of, what a cache lacks of it, and what is between two of them. Plain data; who shows it is
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use calve_nix::StorePath;

use crate::archive::write_nar;
use crate::chunk::ChunkId;
use crate::cut::cut;
use crate::index::LocalIndex;
use crate::progress::Progress;
use crate::pull::blocking;
use crate::recipe::{Piece, Recipe};
use crate::remote::{ITEMS_MAX, Remote};
use crate::retry::retried;
use crate::{PathInfo, Store, StoreError, TransferError};

/// How long a cache may take to say what it lacks.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// One path of a closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePath {
    /// The path.
    pub path: StorePath,
    /// Size of its archive in bytes.
    pub nar_size: u64,
    /// Size in bytes of the archives of the path and of all that it refers to, directly or not, each counted once.
    pub closure_size: u64,
    /// What it refers to, itself left out; sorted.
    pub references: Vec<StorePath>,
}

/// The paths of the closure of `roots`, sorted. Blocks.
pub fn tree(store: &Store, roots: &[StorePath]) -> Result<Vec<TreePath>, StoreError> {
    let infos = store.path_infos(&store.closure(roots)?)?;
    let by_path: HashMap<_, _> = infos.iter().map(|info| (&info.path, info)).collect();
    let tree_path = |info: &PathInfo| TreePath {
        path: info.path.clone(),
        nar_size: info.nar_size,
        closure_size: closure_size(&info.path, &by_path),
        references: info.references.iter().filter(|path| **path != info.path).cloned().collect(),
    };
    Ok(infos.iter().map(tree_path).collect())
}

fn closure_size(root: &StorePath, infos: &HashMap<&StorePath, &PathInfo>) -> u64 {
    let (mut queue, mut seen, mut size) = (vec![root], HashSet::from([root]), 0);
    while let Some(info) = queue.pop().and_then(|path| infos.get(path)) {
        size += info.nar_size;
        queue.extend(info.references.iter().filter(|path| seen.insert(*path)));
    }
    size
}

/// Which paths of the closure of `roots` a cache lacks, sorted.
pub async fn missing_in(
    store: Arc<Store>,
    roots: &[StorePath],
    remote: &dyn Remote,
) -> Result<Vec<StorePath>, TransferError> {
    let roots = roots.to_vec();
    let closure = blocking(move || Ok(store.closure(&roots)?)).await?;
    let paths: Vec<_> = closure.paths.into_iter().map(|at| at.path).collect();
    let (mut missing, progress) = (Vec::new(), Progress::default());
    for paths in paths.chunks(ITEMS_MAX) {
        let ask = || remote.missing_paths(paths);
        missing.extend(retried("asking which paths are missing", ANSWER_TIMEOUT, &progress, ask).await?);
    }
    Ok(missing)
}

/// What is between two closures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// Packages whose paths differ, sorted by name.
    pub packages: Vec<PackageChange>,
    /// Size in bytes of all archives of the first closure.
    pub before_bytes: u64,
    /// The same of the second.
    pub after_bytes: u64,
    /// Chunks of the second closure that the first does not have: what would move to a host that has the first.
    pub moved_chunks: u64,
    /// Their plain bytes.
    pub moved_bytes: u64,
}

/// How a package differs between two closures. A package is what paths with one name before the version belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// Its versions in the first closure, sorted; empty texts for paths without a version. None: it is new.
    pub before: Vec<String>,
    /// Its versions in the second closure. None: it is gone.
    pub after: Vec<String>,
    /// Size in bytes of its archives in the first closure.
    pub before_bytes: u64,
    /// The same in the second.
    pub after_bytes: u64,
}

impl PackageChange {
    /// Whether the versions are the same: it was built again, as after a change in what it refers to.
    pub fn is_rebuild(&self) -> bool {
        self.before == self.after
    }
}

/// Compares the closures of `before` and `after`. Paths whose recipes `index` does not know are read and cut. Blocks.
pub fn diff(
    store: &Store,
    index: Option<&LocalIndex>,
    before: &[StorePath],
    after: &[StorePath],
) -> Result<Diff, TransferError> {
    let (before, after) = (Side::load(store, before)?, Side::load(store, after)?);
    let (moved_chunks, moved_bytes) = moved(store, index, &before, &after)?;
    Ok(Diff {
        packages: packages(&before, &after),
        before_bytes: before.infos.values().map(|info| info.nar_size).sum(),
        after_bytes: after.infos.values().map(|info| info.nar_size).sum(),
        moved_chunks,
        moved_bytes,
    })
}

struct Side {
    infos: BTreeMap<StorePath, PathInfo>,
}

impl Side {
    fn load(store: &Store, roots: &[StorePath]) -> Result<Self, StoreError> {
        let infos = store.path_infos(&store.closure(roots)?)?;
        Ok(Self { infos: infos.into_iter().map(|info| (info.path.clone(), info)).collect() })
    }
}

fn packages(before: &Side, after: &Side) -> Vec<PackageChange> {
    let mut changes: BTreeMap<&str, (PackageChange, bool)> = BTreeMap::new();
    let sides = [(before, after, true), (after, before, false)];
    for (side, other, is_before) in sides {
        for info in side.infos.values() {
            let (name, version) = split_name(info.path.name());
            let (change, differs) = changes.entry(name).or_insert_with(|| {
                let (before, after) = (Vec::new(), Vec::new());
                let name = name.to_owned();
                (PackageChange { name, before, after, before_bytes: 0, after_bytes: 0 }, false)
            });
            let (versions, bytes) = match is_before {
                true => (&mut change.before, &mut change.before_bytes),
                false => (&mut change.after, &mut change.after_bytes),
            };
            versions.push(version.to_owned());
            versions.sort_unstable();
            *bytes += info.nar_size;
            *differs |= !other.infos.contains_key(&info.path);
        }
    }
    changes.into_values().filter(|(_, differs)| *differs).map(|(change, _)| change).collect()
}

/// Splits a path's name into a package's and a version, at the first dash that no letter follows, as Nix does
/// (`src/libexpr/names.cc`); the dash belongs to neither.
pub fn split_name(name: &str) -> (&str, &str) {
    let bytes = name.as_bytes();
    let dash = (0..bytes.len())
        .find(|&n| bytes[n] == b'-' && bytes.get(n + 1).is_some_and(|next| !next.is_ascii_alphabetic()));
    dash.map_or((name, ""), |n| (&name[..n], &name[n + 1..]))
}

/// Number and plain bytes of the chunks of `after` that `before` lacks.
fn moved(
    store: &Store,
    index: Option<&LocalIndex>,
    before: &Side,
    after: &Side,
) -> Result<(u64, u64), TransferError> {
    let new = after.infos.values().filter(|info| !before.infos.contains_key(&info.path));
    let new: Vec<_> = new.collect();
    if new.is_empty() {
        return Ok((0, 0));
    }
    let mut held: HashSet<ChunkId> = HashSet::new();
    for info in before.infos.values() {
        held.extend(recipe(store, index, info)?.pieces.iter().map(|piece| piece.id));
    }
    let mut moved: BTreeSet<(ChunkId, u32)> = BTreeSet::new();
    for info in new {
        let pieces = recipe(store, index, info)?.pieces;
        moved.extend(
            pieces.iter().filter(|Piece { id, .. }| !held.contains(id)).map(|piece| (piece.id, piece.len)),
        );
    }
    Ok((moved.len() as u64, moved.iter().map(|(_, len)| u64::from(*len)).sum()))
}

fn recipe(store: &Store, index: Option<&LocalIndex>, info: &PathInfo) -> Result<Recipe, TransferError> {
    if let Some(index) = index
        && let Some(recipe) = index.recipe_of(&info.path, &info.nar_hash)?
    {
        return Ok(recipe);
    }
    let place =
        store.host_path_of(&info.path).ok_or_else(|| StoreError::Unknown { path: info.path.clone() })?;
    let write =
        |out: &mut dyn std::io::Write| write_nar(&place, out).map(|_| ()).map_err(std::io::Error::other);
    let recipe = cut(&info.counted_references(), None, write, |_| Ok(()));
    recipe.map_err(|source| TransferError::Read { path: info.path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_nix_splits_them() {
        // `nix-env -qa` and `builtins.parseDrvName` of Nix 2.8.
        for (name, expected) in [
            ("glibc-2.40-66", ("glibc", "2.40-66")),
            ("glibc-2.40-bin", ("glibc", "2.40-bin")),
            ("python3-minimal", ("python3-minimal", "")),
            ("gcc-wrapper-13.2", ("gcc-wrapper", "13.2")),
            ("source", ("source", "")),
            ("x-", ("x-", "")),
        ] {
            assert_eq!(split_name(name), expected);
        }
    }
}
