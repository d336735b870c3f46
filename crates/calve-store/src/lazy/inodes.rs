//! Numbers of files: 1 is the directory of all store paths, each path has as many numbers in a row as its tree has nodes.

use std::collections::HashMap;
use std::path::PathBuf;

use super::closure::{LazyClosure, LazyPath};
use super::tree::{NodeKind, TreeNode};

/// The directory of all store paths.
pub const ROOT: u64 = 1;
/// The number behind [`ROOT`].
const FIRST: u64 = 2;

/// The files of a closure.
pub struct Inodes {
    paths: Vec<Indexed>,
    by_name: HashMap<Vec<u8>, usize>,
}

struct Indexed {
    path: LazyPath,
    first: u64,
    parents: Vec<u32>,
    /// Where the entries of each directory begin in `entries`, and how many they are.
    ranges: HashMap<u32, (u32, u32)>,
    entries: Vec<u32>,
}

/// One file.
#[derive(Clone, Copy)]
pub struct Inode<'a> {
    /// Its number.
    pub number: u64,
    /// The path that it lies in.
    pub path: &'a LazyPath,
    /// Its node there.
    pub node: &'a TreeNode,
    indexed: &'a Indexed,
    at: u32,
}

impl Inodes {
    /// Numbers the files of a closure.
    pub fn new(closure: LazyClosure) -> Self {
        let (mut first, mut paths) = (FIRST, Vec::with_capacity(closure.paths.len()));
        for path in closure.paths {
            let nodes = path.tree.nodes().len() as u64;
            paths.push(Indexed::new(path, first));
            first += nodes;
        }
        let name = |indexed: &Indexed| indexed.path.info.path.base_name().as_bytes().to_vec();
        let by_name = paths.iter().enumerate().map(|(n, indexed)| (name(indexed), n)).collect();
        Self { paths, by_name }
    }

    /// The file with this number; none for [`ROOT`] and for numbers that nobody was told.
    pub fn get(&self, number: u64) -> Option<Inode<'_>> {
        let indexed = self.paths.get(self.paths.partition_point(|it| it.first <= number).checked_sub(1)?)?;
        indexed.inode(u32::try_from(number - indexed.first).ok()?)
    }

    /// The roots of all paths.
    pub fn roots(&self) -> impl Iterator<Item = Inode<'_>> {
        self.paths.iter().filter_map(|indexed| indexed.inode(0))
    }

    /// The root of the path with this base name.
    pub fn root(&self, name: &[u8]) -> Option<Inode<'_>> {
        self.paths[*self.by_name.get(name)?].inode(0)
    }
}

impl Indexed {
    fn new(path: LazyPath, first: u64) -> Self {
        let nodes = path.tree.nodes();
        let mut parents = Vec::with_capacity(nodes.len());
        let mut open: Vec<u32> = Vec::new();
        for (n, node) in (0..).zip(nodes) {
            open.truncate(node.depth as usize);
            parents.push(open.last().copied().unwrap_or(0));
            if node.kind == NodeKind::Directory {
                open.push(n);
            }
        }
        let mut ranges: HashMap<u32, (u32, u32)> = HashMap::new();
        for parent in &parents[1..] {
            ranges.entry(*parent).or_default().1 += 1;
        }
        let mut begin = 0;
        for (n, _) in (0..).zip(nodes) {
            if let Some(range) = ranges.get_mut(&n) {
                (range.0, begin) = (begin, begin + range.1);
                range.1 = 0;
            }
        }
        let mut entries = vec![0; parents.len() - 1];
        for (n, parent) in (0..).zip(&parents).skip(1) {
            let range = ranges.get_mut(parent).expect("every parent was counted");
            entries[(range.0 + range.1) as usize] = n;
            range.1 += 1;
        }
        Self { path, first, parents, ranges, entries }
    }

    fn inode(&self, at: u32) -> Option<Inode<'_>> {
        let node = self.path.tree.nodes().get(at as usize)?;
        Some(Inode { number: self.first + u64::from(at), path: &self.path, node, indexed: self, at })
    }
}

impl<'a> Inode<'a> {
    /// The entries of a directory in the order of their names; none of anything else.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Inode<'a>> + use<'a> {
        let indexed = self.indexed;
        let (begin, len) = indexed.ranges.get(&self.at).copied().unwrap_or_default();
        let entries = &indexed.entries[begin as usize..(begin + len) as usize];
        entries.iter().map(|at| indexed.inode(*at).expect("entries are nodes"))
    }

    /// The entry of this name.
    pub fn entry(&self, name: &[u8]) -> Option<Inode<'a>> {
        let (begin, len) = self.indexed.ranges.get(&self.at).copied()?;
        let entries = &self.indexed.entries[begin as usize..(begin + len) as usize];
        let nodes = self.path.tree.nodes();
        let at = entries.binary_search_by(|at| nodes[*at as usize].name.as_slice().cmp(name)).ok()?;
        self.indexed.inode(entries[at])
    }

    /// The number of the directory around it.
    pub fn parent(&self) -> u64 {
        match self.at {
            0 => ROOT,
            at => self.indexed.first + u64::from(self.indexed.parents[at as usize]),
        }
    }

    /// Where it lies below the root of its path.
    pub fn place(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let (nodes, mut names, mut at) = (self.path.tree.nodes(), Vec::new(), self.at);
        while at != 0 {
            names.push(std::ffi::OsStr::from_bytes(&nodes[at as usize].name));
            at = self.indexed.parents[at as usize];
        }
        names.into_iter().rev().collect()
    }
}
