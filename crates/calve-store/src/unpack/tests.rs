use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use calve_nix::nar::NarWriter;

use super::*;
use crate::archive::{hash_tree, write_nar};

fn sample(root: &Path) {
    fs::create_dir_all(root.join("empty")).unwrap();
    let mut deep = root.join("deep");
    for level in 0..80 {
        deep.push(format!("{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "x").unwrap();
    fs::write(root.join("deep/after"), "y").unwrap();
    fs::write(root.join("none"), "").unwrap();
    fs::write(root.join("large"), vec![7; 700_001]).unwrap();
    symlink("../../etc", root.join("link")).unwrap();
}

fn unpacked(nar: &[u8], place: &Path) -> Result<(), UnpackError> {
    unpack(ReadBlocks::new(nar), place, &Sha256Hash::of(nar), nar.len() as u64)
}

#[test]
fn a_tree_comes_back_sealed() {
    let dir = tempfile::tempdir().unwrap();
    sample(&dir.path().join("from"));
    let nar = write_nar(&dir.path().join("from"), Vec::new()).unwrap();
    let place = dir.path().join("to");
    unpacked(&nar, &place).unwrap();
    assert_eq!(hash_tree(&place).unwrap(), (Sha256Hash::of(&nar), nar.len() as u64));
    for (name, mode) in [("deep/0/1", 0o555), ("large", 0o444), ("link", 0o777)] {
        let metadata = place.join(name).symlink_metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (mode, 1), "{name}");
    }
    crate::scratch::remove_tree(&place).unwrap();
}

#[test]
fn many_files_are_made_by_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let mut deep = from.join("deep");
    for level in 0..60 {
        // Files before and behind the next directory, so that each is gone back to.
        deep.push(format!("m{level}"));
        fs::create_dir_all(&deep).unwrap();
        for name in ["a", "b", "x", "y"] {
            fs::write(deep.join(name), format!("{level} {name}")).unwrap();
        }
    }
    for n in 0..400 {
        fs::create_dir_all(from.join(format!("dir-{}", n / 40))).unwrap();
        fs::write(from.join(format!("dir-{}/file-{n}", n / 40)), vec![n as u8; n * 7]).unwrap();
    }
    for n in 0..3_u8 {
        fs::write(from.join(format!("large-{n}")), vec![n; 1_500_003]).unwrap();
    }
    let nar = write_nar(&from, Vec::new()).unwrap();
    let place = dir.path().join("to");
    unpacked(&nar, &place).unwrap();
    assert_eq!(hash_tree(&place).unwrap(), (Sha256Hash::of(&nar), nar.len() as u64));
    let mut open = vec![place.clone()];
    while let Some(at) = open.pop() {
        let metadata = at.symlink_metadata().unwrap();
        let mode = if metadata.is_dir() { 0o555 } else { 0o444 };
        // The root is sealed where it is moved to.
        assert!(at == place || (metadata.mode() & 0o7777, metadata.mtime()) == (mode, 1), "{at:?}");
        if metadata.is_dir() {
            open.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    crate::scratch::remove_tree(&place).unwrap();
}

#[test]
fn one_file_is_a_tree_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut nar = NarWriter::new(Vec::new()).unwrap();
    nar.file(b"", true, 2, &mut &b"hi"[..]).unwrap();
    let nar = nar.finish().unwrap();
    unpacked(&nar, &dir.path().join("to")).unwrap();
    let metadata = fs::metadata(dir.path().join("to")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o555, 1));
}

#[test]
fn what_is_not_the_archive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    sample(&dir.path().join("from"));
    let nar = write_nar(&dir.path().join("from"), Vec::new()).unwrap();
    let (hash, size) = (Sha256Hash::of(&nar), nar.len() as u64);
    let mut count = 0;
    let mut refused = |nar: &[u8], size: u64| {
        count += 1;
        let place = dir.path().join(format!("to-{count}"));
        unpack(ReadBlocks::new(nar), &place, &hash, size).unwrap_err()
    };
    let mut flipped = nar.clone();
    let at = nar.windows(8).rposition(|window| window == [7; 8]).unwrap();
    flipped[at] ^= 1;
    assert!(matches!(refused(&flipped, size), UnpackError::WrongHash { .. }));
    assert!(matches!(refused(&nar[..nar.len() - 8], size), UnpackError::Archive(_)));
    assert!(matches!(refused(&nar, size + 8), UnpackError::Archive(_)));
    assert!(matches!(refused(&nar, size - 8), UnpackError::Archive(_)));
    let longer = [nar.as_slice(), &[0; 8]].concat();
    assert!(matches!(refused(&longer, size), UnpackError::Archive(_)));
    let mut named = nar.clone();
    let at = nar.windows(5).position(|window| window == b"after").unwrap();
    named[at..at + 5].copy_from_slice(b"../up");
    assert!(matches!(refused(&named, size), UnpackError::Archive(_)));
}

#[test]
fn a_place_that_is_taken_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    sample(&dir.path().join("from"));
    let nar = write_nar(&dir.path().join("from"), Vec::new()).unwrap();
    symlink("elsewhere", dir.path().join("to")).unwrap();
    assert!(matches!(unpacked(&nar, &dir.path().join("to")), Err(UnpackError::Store(_))));
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn what_the_source_says_is_what_is_told() {
    struct Broken;
    impl Blocks for Broken {
        fn next_block(&mut self) -> io::Result<Option<Bytes>> {
            Err(io::Error::other("the cache burnt down"))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(Broken, &dir.path().join("to"), &Sha256Hash::of(b""), 100).unwrap_err();
    assert!(matches!(error, UnpackError::Input(source) if source.to_string() == "the cache burnt down"));
}
