//! Trees made at random, with the names that break archives: not UTF-8, long, deep, differing in case.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use calve_nix::{NarEvent, NarReadError, NarReader, NarWriter};
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(Entries),
}

/// What a directory holds, by name.
pub type Entries = BTreeMap<Vec<u8>, Tree>;

/// A name of an entry, with every byte that may stand in one.
pub fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zA-Z0-9._+-]{1,12}".prop_map(String::into_bytes),
        2 => prop::collection::vec(1..=255u8, 1..20),
        1 => prop::collection::vec(1..=255u8, 200..=255),
        1 => prop::sample::select(vec!["...", "-", " ", "\n", "A", "a", "~nix~case~hack~1", "é", "\u{7f}"])
            .prop_map(|name| name.as_bytes().to_owned()),
    ]
    .prop_filter("a name", |name| calve_nix::nar::is_entry_name(name))
}

/// A tree of at most `depth` levels of directories.
pub fn tree(depth: u32) -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        3 => (any::<bool>(), prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(executable, contents)| Tree::File { executable, contents }),
        1 => prop::collection::vec(1..=255u8, 1..40).prop_map(Tree::Symlink),
        1 => Just(Tree::Directory(BTreeMap::new())),
    ];
    leaf.prop_recursive(depth, 48, 6, |inner| {
        prop::collection::btree_map(name(), inner, 0..6).prop_map(Tree::Directory)
    })
}

pub fn archive(tree: &Tree) -> Vec<u8> {
    fn node(nar: &mut NarWriter<Vec<u8>>, name: &[u8], tree: &Tree) {
        match tree {
            Tree::File { executable, contents } => {
                nar.file(name, *executable, contents.len() as u64, &mut contents.as_slice()).unwrap();
            }
            Tree::Symlink(target) => nar.symlink(name, target).unwrap(),
            Tree::Directory(entries) => {
                nar.begin_directory(name).unwrap();
                entries.iter().for_each(|(name, tree)| node(nar, name, tree));
                nar.end_directory().unwrap();
            }
        }
    }
    let mut nar = NarWriter::new(Vec::new()).unwrap();
    node(&mut nar, b"", tree);
    nar.finish().unwrap()
}

pub fn unpack(archive: impl Read) -> Result<Tree, NarReadError> {
    let mut nar = NarReader::new(archive);
    let mut open: Vec<(Vec<u8>, Entries)> = Vec::new();
    let mut root = None;
    while let Some(event) = nar.next_event()? {
        let (name, tree) = match event {
            NarEvent::Enter { name } => {
                open.push((name, Entries::new()));
                continue;
            }
            NarEvent::Leave => {
                let (name, entries) = open.pop().unwrap();
                (name, Tree::Directory(entries))
            }
            NarEvent::File { name, executable, size, .. } => {
                let mut contents = Vec::new();
                if let Err(error) = nar.contents().read_to_end(&mut contents) {
                    return Err(error.downcast().unwrap());
                }
                assert_eq!(contents.len() as u64, size);
                (name, Tree::File { executable, contents })
            }
            NarEvent::Symlink { name, target } => (name, Tree::Symlink(target)),
        };
        match open.last_mut() {
            Some((_, entries)) => assert!(entries.insert(name, tree).is_none()),
            None => root = Some(tree),
        }
    }
    nar.finish()?;
    Ok(root.unwrap())
}

/// Makes the tree on the disk.
pub fn make(tree: &Tree, at: &Path) {
    match tree {
        Tree::File { executable, contents } => {
            fs::write(at, contents).unwrap();
            fs::set_permissions(at, Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).unwrap();
        }
        Tree::Symlink(target) => symlink(OsStr::from_bytes(target), at).unwrap(),
        Tree::Directory(entries) => {
            fs::create_dir(at).unwrap();
            entries.iter().for_each(|(name, tree)| make(tree, &at.join(OsStr::from_bytes(name))));
        }
    }
}
