use std::fs;

use calve_tree::NarView;

use super::*;
use crate::archive::hash_tree;
use crate::cut::tests::{noise, path};

struct Stage(tempfile::TempDir);

impl Stage {
    /// A path of a package, with a large file and small ones, which name a dependency and the path itself.
    fn make(&self, path: &StorePath, dependency: &StorePath, change: &str) -> (PathInfo, PathBuf) {
        let place = self.0.path().join(path.base_name());
        fs::create_dir_all(place.join("share")).unwrap();
        let mut large = noise(1, 2_000_000);
        for at in (0..large.len() - 32).step_by(30_011) {
            large[at..at + 32].copy_from_slice(dependency.hash_part().as_bytes());
        }
        fs::write(place.join("large"), large).unwrap();
        for n in 0..100 {
            fs::write(place.join(format!("share/{n}")), noise(n + 10, 3000)).unwrap();
        }
        fs::write(place.join("share/self"), format!("{path} {dependency} {change}")).unwrap();
        let (nar_hash, nar_size) = hash_tree(&place).unwrap();
        let mut references = vec![path.clone(), dependency.clone()];
        references.sort();
        let info = PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size,
            references,
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        (info, place)
    }

    /// Tells a path, and puts it together as the other side does. Gives how many bytes were told.
    fn told(&self, info: &PathInfo, place: &Path, held: &Held) -> usize {
        let (mut whole, mut told) = (Vec::new(), 0);
        tell(info, place, held, |part| {
            match part {
                Part::Bytes(bytes) => {
                    told += bytes.len();
                    whole.extend_from_slice(bytes);
                }
                Part::Copy(copied) => {
                    let view = NarView::open(&self.0.path().join(copied.from.base_name())).unwrap().unwrap();
                    let mut bytes = vec![0; copied.len as usize];
                    view.read_at(&mut bytes, copied.at).unwrap();
                    for (at, hash) in &copied.hashes {
                        bytes[*at..at + hash.len()].copy_from_slice(hash);
                    }
                    whole.extend(bytes);
                }
            }
            Ok(())
        })
        .unwrap();
        assert!(whole == write_nar(place, Vec::new()).unwrap());
        told
    }
}

#[test]
fn a_rebuild_with_other_hashes_is_told_by_them_alone() {
    let stage = Stage(tempfile::tempdir().unwrap());
    let (glibc, other_glibc) = (path(1, "glibc-2.40"), path(2, "glibc-2.40"));
    let (old, old_place) = stage.make(&path(3, "tool-1.0"), &glibc, "");
    let (new, new_place) = stage.make(&path(4, "tool-1.0"), &other_glibc, "");
    assert_eq!(stage.told(&new, &new_place, &Held::default()) as u64, new.nar_size);
    let mut held = Held::default();
    held.add(old, old_place);
    assert_eq!(stage.told(&new, &new_place, &held), 0);
}

#[test]
fn another_version_is_told_by_what_changed() {
    let stage = Stage(tempfile::tempdir().unwrap());
    let glibc = path(1, "glibc-2.40");
    let (old, old_place) = stage.make(&path(3, "tool-1.0"), &glibc, "");
    let (new, new_place) = stage.make(&path(4, "tool-1.1"), &glibc, "changed");
    let mut held = Held::default();
    // Paths of other packages, and what is here no more, are no help and no harm.
    let (other, other_place) = stage.make(&path(5, "library-1.0"), &glibc, "changed");
    held.add(other, other_place);
    let (gone, gone_place) = stage.make(&path(6, "tool-1.1"), &glibc, "changed");
    fs::remove_dir_all(&gone_place).unwrap();
    held.add(gone, gone_place);
    assert_eq!(stage.told(&new, &new_place, &held) as u64, new.nar_size);
    held.add(old, old_place);
    let told = stage.told(&new, &new_place, &held);
    assert!(0 < told && told <= crate::chunk::CHUNK_MAX as usize, "{told}");
}

#[test]
fn who_takes_no_more_ends_it() {
    let stage = Stage(tempfile::tempdir().unwrap());
    let (info, place) = stage.make(&path(3, "tool-1.0"), &path(1, "glibc-2.40"), "");
    let error = tell(&info, &place, &Held::default(), |_| Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe),
        "{error:?}"
    );
}
