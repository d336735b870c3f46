//! Files with equal contents, whose whole blocks an image holds once.
//!
//! Only files of one size can be equal, so that little has to be read: most sizes occur once. Hard links are equal without
//! being read, but equal files that are not linked are found as well: what an image holds must not depend on whether a
//! host links equal files (as `nix-store --optimise` does).

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;

use calve_nix::{HashWriter, Sha256Hash};
use calve_tree::open_file;

use super::format::FileType;
use super::plan::Plan;
use crate::StoreError;

/// What tells contents apart.
pub type Content = (u64, Sha256Hash);

/// The contents of every file, by its index, that shares its size with another one and has whole blocks.
pub fn contents(plan: &Plan) -> Result<HashMap<u32, Content>, StoreError> {
    let has_blocks = |at: &&u32| {
        let node = &plan.nodes[**at as usize];
        matches!(node.file_type, FileType::Regular { .. }) && node.place.blocks > 0
    };
    let mut files: Vec<u32> = plan.order.iter().filter(has_blocks).copied().collect();
    let size = |at: &u32| plan.nodes[*at as usize].size;
    files.sort_by_key(size);
    let mut contents = HashMap::new();
    for group in files.chunk_by(|a, b| size(a) == size(b)).filter(|group| group.len() > 1) {
        let mut known = HashMap::new();
        for at in group {
            contents.insert(*at, (size(at), hash(plan, *at, &mut known)?));
        }
    }
    Ok(contents)
}

/// Hashes a file unless it is a hard link to one in `known`.
fn hash(plan: &Plan, at: u32, known: &mut HashMap<(u64, u64), Sha256Hash>) -> Result<Sha256Hash, StoreError> {
    let path = plan.host_path(at);
    let (mut file, metadata) = open_file(&path)?;
    let inode = (metadata.dev(), metadata.ino());
    if let Some(hash) = known.get(&inode) {
        return Ok(*hash);
    }
    let mut writer = HashWriter::default();
    io::copy(&mut file, &mut writer).map_err(StoreError::io("read", &path))?;
    let (hash, _) = writer.finish();
    known.insert(inode, hash);
    Ok(hash)
}
