//! The tree in an archive with the place of every file's contents: what is mounted before the archive is here.
//!
//! It differs from [`calve_nix::listing`] in what it can hold (names that are no UTF-8) and in how it travels: as an archive
//! of its own, normalised and cut into chunks, so that a rebuild that changes only hashes has the same one.

use std::io::BufRead;
use std::ops::Range;

use calve_nix::StorePath;
use calve_nix::nar::{
    DEPTH_MAX, InContents, NAME_MAX_BYTES, NarEvent, NarReadError, NarReader, TARGET_MAX_BYTES, is_entry_name,
};
use serde::{Deserialize, Serialize};

use crate::chunk::StoredChunk;
use crate::cut::{CHUNK_LEVEL, cut_stored};
use crate::recipe::Recipe;

/// Most files, directories and links of one path: reading them takes some 100 bytes of memory each. Paths with more are
/// pulled as a whole.
pub const TREE_NODES_MAX: usize = 1 << 20;
/// Most bytes of an encoded tree that anybody reads.
pub const TREE_BYTES_MAX: u64 = 128 << 20;
/// The only version that there is so far.
const VERSION: u8 = 1;

/// A tree, in its archive's order: a directory, then its entries by the bytes of their names, each with what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    nodes: Vec<TreeNode>,
}

/// One node of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeNode {
    /// Directories around it; only the root has 0.
    pub depth: u32,
    /// Its name in the directory around it, empty for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A directory; the nodes behind it that are deeper lie in it.
    Directory,
    /// A regular file.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// Its size in bytes.
        size: u64,
        /// Bytes of the archive before its contents.
        offset: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
}

/// Why bytes are no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the listing is damaged: {0}")]
pub struct TreeError(pub String);

impl Tree {
    /// The tree of the archive that `input` begins with, read to its end; none where it has too many nodes.
    pub fn of_nar(input: impl BufRead) -> Result<Option<Self>, NarReadError> {
        read_nodes(NarReader::new(input), Vec::new(), 0)
    }

    /// The tree of an archive that begins with the first `at` bytes of this one's, which end inside of a file's contents or
    /// at their end, or this panics; `input` gives the rest.
    pub(crate) fn of_nar_from(&self, at: u64, input: impl BufRead) -> Result<Option<Self>, NarReadError> {
        let (nodes, place) = self.up_to(at);
        let depth = place.open.len() as u32;
        let mut reader = NarReader::inside(input, place);
        reader.pass_over()?;
        read_nodes(reader, nodes, depth)
    }

    /// The nodes up to the file in whose contents byte `at` of the archive lies, and where that is in them.
    fn up_to(&self, at: u64) -> (Vec<TreeNode>, InContents) {
        let inside = |node: &TreeNode| match node.kind {
            NodeKind::File { size, offset, .. } if (offset..=offset + size).contains(&at) => {
                Some((size, offset + size - at))
            }
            _ => None,
        };
        let nodes = self.nodes.iter().enumerate();
        let found = nodes.rev().find_map(|(n, node)| Some((n, inside(node)?)));
        let (last, (size, left)) = found.expect("the place lies inside of a file's contents");
        let nodes = self.nodes[..=last].to_vec();
        let mut open = Vec::new();
        let mut depth = nodes[last].depth;
        for node in nodes.iter().rev() {
            if depth == 0 {
                break;
            }
            if node.depth == depth {
                open.push(node.name.clone());
                depth -= 1;
            }
        }
        open.reverse();
        (nodes, InContents { offset: at, open, size, left })
    }

    /// Where files' contents lie in the archive, in its order.
    pub fn contents(&self) -> impl Iterator<Item = Range<u64>> {
        self.nodes.iter().filter_map(|node| match node.kind {
            NodeKind::File { size, offset, .. } => Some(offset..offset + size),
            NodeKind::Directory | NodeKind::Symlink { .. } => None,
        })
    }

    /// About how many bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        let own = |node: &TreeNode| {
            let target = match &node.kind {
                NodeKind::Symlink { target } => target.capacity(),
                NodeKind::Directory | NodeKind::File { .. } => 0,
            };
            size_of::<TreeNode>() + node.name.capacity() + target
        };
        self.nodes.iter().map(own).sum()
    }

    /// Every node, in the archive's order.
    pub fn nodes(&self) -> &[TreeNode] {
        &self.nodes
    }

    /// The bytes that are cut, stored and sent (postcard, with a version in front).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_allocvec(self).expect("a tree is plain data"));
        bytes
    }

    /// The tree of [`Tree::encode`], checked against an archive of `nar_size` bytes: names that a directory may hold, each
    /// once and in order, contents inside of the archive.
    pub fn decode(bytes: &[u8], nar_size: u64) -> Result<Self, TreeError> {
        let (version, rest) = bytes.split_first().ok_or_else(|| TreeError("it is empty".to_owned()))?;
        if *version != VERSION {
            return Err(TreeError(format!(
                "it has version {version}, and this calve reads version {VERSION}"
            )));
        }
        let (tree, rest): (Self, _) =
            postcard::take_from_bytes(rest).map_err(|error| TreeError(error.to_string()))?;
        if !rest.is_empty() {
            return Err(TreeError(format!("{} bytes follow it", rest.len())));
        }
        tree.check(nar_size)?;
        Ok(tree)
    }

    /// How it is stored: the encoded bytes, normalised and cut as an archive with these references is, in the order of
    /// [`PathInfo::counted_references`](crate::PathInfo::counted_references).
    pub fn cut(&self, references: &[&StorePath]) -> std::io::Result<(Recipe, Vec<StoredChunk>)> {
        let bytes = self.encode();
        cut_stored(references, None, CHUNK_LEVEL, |out| out.write_all(&bytes))
    }

    fn check(&self, nar_size: u64) -> Result<(), TreeError> {
        let wrong = |message: String| Err(TreeError(message));
        if self.nodes.len() > TREE_NODES_MAX {
            return wrong(format!("it has {} nodes", self.nodes.len()));
        }
        let Some(root) = self.nodes.first() else { return wrong("it has no root".to_owned()) };
        if root.depth != 0 || !root.name.is_empty() {
            return wrong("its root has a name".to_owned());
        }
        // The last name seen in each open directory.
        let mut open: Vec<&[u8]> = Vec::new();
        if root.kind == NodeKind::Directory {
            open.push(b"");
        }
        let mut end = 0;
        for (n, node) in self.nodes.iter().enumerate() {
            let name = String::from_utf8_lossy(&node.name);
            if n > 0 {
                let depth = node.depth as usize;
                if depth == 0 || depth > open.len() || depth > DEPTH_MAX {
                    return wrong(format!("{name:?} lies in no directory"));
                }
                open.truncate(depth);
                let last = open.last_mut().expect("it has a directory around it");
                if !is_entry_name(&node.name) || node.name.len() > NAME_MAX_BYTES {
                    return wrong(format!("{name:?} cannot be the name of a directory entry"));
                }
                if *last >= node.name.as_slice() {
                    return wrong(format!("{name:?} is out of order"));
                }
                *last = &node.name;
                if node.kind == NodeKind::Directory {
                    open.push(b"");
                }
            }
            match &node.kind {
                NodeKind::Directory => {}
                NodeKind::File { size, offset, .. } => {
                    let next = offset.checked_add(*size).filter(|next| *next <= nar_size && *offset >= end);
                    let Some(next) = next else {
                        return wrong(format!("the contents of {name:?} lie outside of the archive"));
                    };
                    end = next;
                }
                NodeKind::Symlink { target } => {
                    if target.is_empty() || target.len() > TARGET_MAX_BYTES || target.contains(&0) {
                        return wrong(format!("the link {name:?} leads nowhere"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The nodes that a reader has before it, behind those that were read, `depth` directories deep.
fn read_nodes(
    mut reader: NarReader<impl BufRead>,
    mut nodes: Vec<TreeNode>,
    mut depth: u32,
) -> Result<Option<Tree>, NarReadError> {
    let mut too_large = false;
    while let Some(event) = reader.next_event()? {
        reader.pass_over()?;
        // Read on, for what is wrong behind it.
        if too_large {
            continue;
        }
        let (name, kind) = match event {
            NarEvent::Leave => {
                depth -= 1;
                continue;
            }
            NarEvent::Enter { name } => (name, NodeKind::Directory),
            NarEvent::File { name, executable, size, offset } => {
                (name, NodeKind::File { executable, size, offset })
            }
            NarEvent::Symlink { name, target } => (name, NodeKind::Symlink { target }),
        };
        if nodes.len() == TREE_NODES_MAX {
            nodes = Vec::new();
            too_large = true;
            continue;
        }
        let enters = kind == NodeKind::Directory;
        nodes.push(TreeNode { depth, name, kind });
        depth += u32::from(enters);
    }
    Ok((!too_large).then_some(Tree { nodes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_nix::nar::NarWriter;

    fn file(depth: u32, name: &str, size: u64, offset: u64) -> TreeNode {
        let kind = NodeKind::File { executable: false, size, offset };
        TreeNode { depth, name: name.into(), kind }
    }

    fn dir(depth: u32, name: &str) -> TreeNode {
        TreeNode { depth, name: name.into(), kind: NodeKind::Directory }
    }

    fn tree() -> Tree {
        let link = NodeKind::Symlink { target: b"../x".to_vec() };
        let link = TreeNode { depth: 1, name: b"\xff".to_vec(), kind: link };
        Tree { nodes: vec![dir(0, ""), dir(1, "a"), file(2, "f", 3, 100), file(1, "b", 0, 200), link] }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(Tree::decode(&tree().encode(), 200), Ok(tree()));
        let bytes = tree().encode();
        for end in 0..bytes.len() {
            assert!(Tree::decode(&bytes[..end], 200).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |change: fn(&mut Vec<TreeNode>)| {
            let mut tree = tree();
            change(&mut tree.nodes);
            Tree::decode(&tree.encode(), 200).unwrap_err().to_string()
        };
        assert!(refused(|nodes| nodes.clear()).contains("no root"));
        assert!(refused(|nodes| nodes[0].name = b"x".to_vec()).contains("root has a name"));
        assert!(refused(|nodes| nodes[2].depth = 3).contains("lies in no directory"));
        assert!(refused(|nodes| nodes[4].depth = 0).contains("lies in no directory"));
        assert!(refused(|nodes| nodes[1].name = b"..".to_vec()).contains("cannot be the name"));
        assert!(refused(|nodes| nodes[1].name = b"a/b".to_vec()).contains("cannot be the name"));
        assert!(refused(|nodes| nodes[3].name = b"a".to_vec()).contains("out of order"));
        assert!(refused(|nodes| nodes[2] = file(2, "f", 101, 100)).contains("outside of the archive"));
        assert!(refused(|nodes| nodes[2] = file(2, "f", u64::MAX, 100)).contains("outside of the archive"));
        assert!(refused(|nodes| nodes[3] = file(1, "b", 1, 102)).contains("outside of the archive"));
        assert!(refused(|nodes| nodes[4].kind = NodeKind::Symlink { target: vec![] }).contains("nowhere"));
        assert!(Tree::decode(&[9], 0).unwrap_err().to_string().contains("version 9"));
    }

    #[test]
    fn an_archive_that_is_known_up_to_a_file_is_listed_from_there_on() {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(&mut nar).unwrap();
        writer.begin_directory(b"").unwrap();
        writer.file(b"a", false, 3, &mut &b"abc"[..]).unwrap();
        writer.begin_directory(b"b").unwrap();
        writer.begin_directory(b"empty").unwrap();
        writer.end_directory().unwrap();
        writer.begin_directory(b"full").unwrap();
        writer.file(b"x", true, 9, &mut &b"123456789"[..]).unwrap();
        writer.file(b"y", false, 0, &mut &b""[..]).unwrap();
        writer.end_directory().unwrap();
        writer.symlink(b"link", b"full").unwrap();
        writer.end_directory().unwrap();
        writer.file(b"c", false, 8, &mut &b"12345678"[..]).unwrap();
        writer.end_directory().unwrap();
        writer.finish().unwrap();
        let tree = Tree::of_nar(&nar[..]).unwrap().unwrap();
        let contents: Vec<_> = tree.contents().collect();
        assert_eq!(contents.len(), 4);
        for at in contents.into_iter().flat_map(|contents| contents.start..=contents.end) {
            assert_eq!(
                tree.of_nar_from(at, &nar[at as usize..]).unwrap(),
                Some(tree.clone()),
                "from {at} on"
            );
        }
        // What follows must fit behind it: a name that comes before the last one does not.
        let file = |name: &[u8]| nar.windows(name.len()).rposition(|bytes| bytes == name).unwrap();
        let mut disordered = nar.clone();
        disordered[file(b"c\0\0\0")] = b'a';
        let place = tree.contents().nth(1).unwrap().start;
        assert!(tree.of_nar_from(place, &disordered[place as usize..]).is_err());
    }

    #[test]
    fn a_rebuild_that_changes_only_hashes_has_the_same_listing() {
        let listing = |digit: char| {
            let hash: String = std::iter::repeat_n(digit, 32).collect();
            let path = StorePath::from_base_name(&format!("{hash}-x")).unwrap();
            let mut nar = Vec::new();
            let mut writer = NarWriter::new(&mut nar).unwrap();
            writer.symlink(b"", format!("{path}/bin/x").as_bytes()).unwrap();
            writer.finish().unwrap();
            let tree = Tree::of_nar(&nar[..]).unwrap().unwrap();
            assert_eq!(tree.nodes().len(), 1);
            tree.cut(&[&path]).unwrap().0
        };
        assert_eq!(listing('0'), listing('1'));
    }
}
