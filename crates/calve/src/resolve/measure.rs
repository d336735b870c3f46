//! How much a tree holds, before it is copied.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::args::show_size;
use crate::failure::{Failure, Outcome};

/// The most that a tree may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Bytes in all files together.
    pub bytes: u64,
    /// Files, directories and links.
    pub files: u64,
}

/// Refuses a tree that holds more. Stops counting at the limit; what cannot be read is left to who copies it.
pub fn check(root: &Path, limit: Limit) -> Outcome<()> {
    let mut waiting = vec![root.to_owned()];
    let (mut bytes, mut files) = (0, 0);
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        files += 1;
        if metadata.is_file() {
            bytes += metadata.size();
        } else if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        if bytes > limit.bytes {
            return Err(too_much(root, &show_size(limit.bytes)));
        }
        if files > limit.files {
            return Err(too_much(root, &format!("{} files", limit.files)));
        }
    }
    Ok(())
}

fn too_much(root: &Path, limit: &str) -> Failure {
    Failure::failed(format!("{} holds more than {limit}, too much for the store", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "12345").unwrap();
        let refusal =
            |bytes, files| check(dir.path(), Limit { bytes, files }).err().map(|failure| failure.sentence);
        assert_eq!(refusal(5, 3), None);
        assert!(refusal(4, 3).unwrap().contains("more than 4B"));
        assert!(refusal(5, 2).unwrap().contains("more than 2 files"));
    }
}
