//! What goes into an image and where, known before a byte of contents is read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use calve_tree::{Node as TreeNode, Walk, file_metadata, is_executable};

use super::dirents;
use super::format::{FileType, SLOT_BYTES};
use super::layout::{Layout, Place};
use super::twins;
use crate::{Closure, StoreError};

/// Every inode of an image with its place. Memory grows with the number of files, not with their sizes.
#[derive(Debug)]
pub struct Plan {
    /// The inodes, depth first, the root before all.
    pub(super) nodes: Vec<Node>,
    /// Indices into `nodes` in the order in which the inodes lie in the image.
    pub(super) order: Vec<u32>,
    /// Blocks before the whole blocks of contents.
    pub(super) data_block: u32,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
}

/// A file, directory or link that goes into the image.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name in its directory; the root has none.
    pub name: Box<[u8]>,
    /// Index of its directory; the root's own.
    pub parent: u32,
    /// Where it lies on the host, for what stands in the root; others lie below their parents.
    host_path: Option<Box<Path>>,
    /// What it is.
    pub file_type: FileType,
    /// Bytes of its contents.
    pub size: u64,
    /// Links that lead to it.
    pub nlink: u32,
    /// Where it goes.
    pub place: Place,
    /// The first of its whole blocks.
    pub block: u32,
    /// Whether another file, earlier in the order of writing, brings these blocks.
    pub shares_blocks: bool,
    /// What it holds, if it is a directory, in the order of names.
    pub children: Vec<u32>,
}

impl Plan {
    /// Plans the image of a closure: a root directory that holds the base names of its paths.
    pub fn new(closure: &Closure) -> Result<Self, StoreError> {
        let mut nodes = vec![Node::new(Box::default(), 0, FileType::Directory, 0)];
        for path in &closure.paths {
            let first = nodes.len();
            append_tree(&mut nodes, &path.host_path)?;
            nodes[first].name = path.path.base_name().as_bytes().into();
            nodes[first].host_path = Some(path.host_path.as_path().into());
        }
        measure_directories(&mut nodes);
        let mut layout = Layout::new(1);
        for node in &mut nodes {
            node.place = layout.place(node.size, node.nlink);
        }
        let mut order: Vec<u32> = (0..index(nodes.len())).collect();
        order.sort_unstable_by_key(|i| nodes[*i as usize].place.inode_at);
        let mut plan = Self { nodes, order, data_block: 0, blocks: 0 };
        plan.place_data(layout.end_block())?;
        Ok(plan)
    }

    /// Gives contents their blocks, from `data_block` on; equal contents the same.
    fn place_data(&mut self, data_block: u64) -> Result<(), StoreError> {
        let mut first_of_content = HashMap::new();
        let contents = twins::contents(self)?;
        let mut next = data_block;
        for at in &self.order {
            let content = contents.get(at).map(|content| first_of_content.entry(*content).or_insert(next));
            let node = &mut self.nodes[*at as usize];
            let block = content.map_or(next, |first| *first);
            node.shares_blocks = block != next;
            node.block = block as u32;
            if !node.shares_blocks {
                next = next.saturating_add(node.place.blocks);
            }
        }
        self.data_block = data_block as u32;
        self.blocks = u32::try_from(next).map_err(|_| StoreError::ImageTooLarge { blocks: next })?;
        Ok(())
    }

    /// The size of the image in bytes.
    pub fn image_bytes(&self) -> u64 {
        u64::from(self.blocks) * super::BLOCK_BYTES
    }

    /// Where a node lies on the host.
    pub(super) fn host_path(&self, mut at: u32) -> PathBuf {
        let mut names = Vec::new();
        let mut path = loop {
            let node = &self.nodes[at as usize];
            if let Some(path) = &node.host_path {
                break path.to_path_buf();
            }
            names.push(&node.name);
            at = node.parent;
        };
        path.extend(names.iter().rev().map(|name| OsStr::from_bytes(name)));
        path
    }

    /// The entries of a directory in their order, `.` and `..` among them.
    pub(super) fn entries(&self, at: u32) -> Vec<dirents::Dirent<'_>> {
        let directory = &self.nodes[at as usize];
        let entry = |name, at: u32| {
            let node = &self.nodes[at as usize];
            dirents::Dirent { name, slot: node.slot(), file_type: node.file_type.dirent_type() }
        };
        let mut entries = vec![entry(&b"."[..], at), entry(b"..", directory.parent)];
        entries
            .extend(directory.children.iter().map(|child| entry(&*self.nodes[*child as usize].name, *child)));
        entries.sort_unstable_by_key(|entry| entry.name);
        entries
    }
}

impl Node {
    fn new(name: Box<[u8]>, parent: u32, file_type: FileType, size: u64) -> Self {
        let place = Place { inode_at: 0, blocks: 0, inline_tail: false };
        Self {
            name,
            parent,
            host_path: None,
            file_type,
            size,
            nlink: 1,
            place,
            block: 0,
            shares_blocks: false,
            children: Vec::new(),
        }
    }

    /// The number under which the inode is found.
    pub fn slot(&self) -> u64 {
        self.place.inode_at / SLOT_BYTES
    }
}

/// Appends the tree at `host_path` as a child of the root.
fn append_tree(nodes: &mut Vec<Node>, host_path: &Path) -> Result<(), StoreError> {
    let mut open = vec![0];
    for step in Walk::new(host_path) {
        let step = step?;
        let parent = *open.last().expect("the root stays open");
        let at = index(nodes.len());
        let (file_type, size) = match step.node {
            TreeNode::Leave => {
                open.pop();
                continue;
            }
            TreeNode::Enter => {
                open.push(at);
                (FileType::Directory, 0)
            }
            TreeNode::File => {
                let metadata = file_metadata(&step.path)?;
                (FileType::Regular { executable: is_executable(&metadata) }, metadata.len())
            }
            TreeNode::Symlink(target) => (FileType::Symlink, target.len() as u64),
        };
        nodes.push(Node::new(step.name.into(), parent, file_type, size));
        nodes[parent as usize].children.push(at);
    }
    Ok(())
}

/// Directories' sizes and links follow from what they hold.
fn measure_directories(nodes: &mut [Node]) {
    for at in 0..nodes.len() {
        if nodes[at].file_type != FileType::Directory {
            continue;
        }
        let children = &nodes[at].children;
        let child = |child: &u32| &nodes[*child as usize];
        let mut names: Vec<&[u8]> =
            children.iter().map(|at| &*child(at).name).chain([&b"."[..], b".."]).collect();
        names.sort_unstable();
        let size = dirents::size(names.into_iter());
        let below = children.iter().filter(|at| child(at).file_type == FileType::Directory).count();
        nodes[at].nlink = 2 + index(below);
        nodes[at].size = size;
    }
}

fn index(count: usize) -> u32 {
    u32::try_from(count).expect("an image of more files than memory holds")
}
