//! Images: the kernel, `fsck.erofs` and `mkfs.erofs` as judges; made once; nothing half-made.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use calve_nix::StorePath;
use calve_store::{Closure, ClosurePath, Store, StoreError, prune_images};
use support::{Host, base, file, have, listing, names, odd_tree, options, run};

/// A closure of an odd tree, a wide directory, a plain file and an empty directory.
fn odd_closure(dir: &Path) -> Closure {
    odd_tree(&dir.join("odd"));
    fs::create_dir_all(dir.join("wide")).unwrap();
    for n in 0..20_000 {
        File::create(dir.join("wide").join(format!("{}{n}", "entry-".repeat(n % 30)))).unwrap();
    }
    file(&dir.join("plain"), &support::noise(9000), 0o755);
    fs::create_dir(dir.join("empty")).unwrap();
    closure_of(dir, &["odd", "wide", "plain", "empty"])
}

fn closure_of(dir: &Path, names: &[&str]) -> Closure {
    let path = |(n, name): (usize, &&str)| ClosurePath {
        path: StorePath::from_base_name(&base(n, name)).unwrap(),
        host_path: dir.join(name),
    };
    Closure::new(names.iter().enumerate().map(path).collect())
}

/// The tree of a closure, as `/nix/store` would show it.
fn expected(closure: &Closure) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut all = vec![(PathBuf::new(), "directory".to_owned(), vec![])];
    for path in &closure.paths {
        for (name, kind, bytes) in listing(&path.host_path) {
            let below = Path::new(path.path.base_name());
            let name = if name.as_os_str().is_empty() { below.to_owned() } else { below.join(name) };
            all.push((name, kind, bytes));
        }
    }
    all.sort();
    all
}

/// An image mounted through a loop device, until dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// None where this user may not mount.
    fn new(image: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let output =
            mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(dir.path()).output().unwrap();
        if output.status.success() {
            return Some(Self(dir));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!rustix::process::getuid().is_root(), "the kernel refuses the image: {said}");
        eprintln!("not mounted: only root may");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0.path()));
    }
}

#[test]
fn the_kernel_sees_the_closure() {
    let host = Host::new();
    let closure = odd_closure(&host.path("in"));
    let image = host.store.image(&closure, &host.path("images")).unwrap();
    assert_eq!(image.metadata().unwrap().len() % 4096, 0);
    let Some(mounted) = Mounted::new(&image) else { return };
    let root = mounted.0.path();
    assert!(listing(root) == expected(&closure), "the trees differ");
    for (name, kind, _) in listing(root) {
        let metadata = root.join(&name).symlink_metadata().unwrap();
        let mode = match kind.as_str() {
            "link" => 0o777,
            "file" => 0o444,
            _ => 0o555,
        };
        let seen = (
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        assert_eq!(seen, (mode, 0, 0, 1, 0), "{name:?}");
        let nlink = if kind == "directory" { 2 + directories(&root.join(&name)) } else { 1 };
        assert_eq!(metadata.nlink(), nlink as u64, "{name:?}");
    }
    // Every name of the wide directory is found by its name, too.
    let wide = root.join(base(1, "wide"));
    assert!(names(&wide).iter().all(|name| wide.join(name).exists()));
    assert!(!wide.join("entry-").exists() && !wide.join("zzz").exists());
}

fn directories(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}

#[test]
fn fsck_finds_nothing_and_mkfs_is_not_smaller() {
    if !have("fsck.erofs") || !have("mkfs.erofs") {
        return;
    }
    let host = Host::new();
    let closure = odd_closure(&host.path("in"));
    let image = host.store.image(&closure, &host.path("images")).unwrap();
    run(Command::new("fsck.erofs").arg(&image));
    let extracted = host.path("extracted");
    run(Command::new("fsck.erofs").arg(format!("--extract={}", extracted.display())).arg(&image));
    assert!(listing(&extracted) == expected(&closure), "the trees differ");
    let summary = String::from_utf8(run(Command::new("dump.erofs").arg("-s").arg(&image)).stdout).unwrap();
    let fields: BTreeMap<_, _> = summary.lines().filter_map(|line| line.split_once(':')).collect();
    let inodes = expected(&closure).len().to_string();
    assert_eq!(fields.get("Filesystem inode count").map(|count| count.trim()), Some(&*inodes), "{summary}");
    // The peer gets the same trees, without the one hard link that it would share and the name of 255 bytes on which
    // version 1.5 of it fails.
    fs::remove_file(host.path("in/odd/names").join("n".repeat(255))).unwrap();
    fs::remove_file(host.path("in/odd/hard-link")).unwrap();
    fs::write(host.path("in/odd/hard-link"), support::noise(1)).unwrap();
    let peer = host.path("peer.erofs");
    run(Command::new("mkfs.erofs")
        .args(["--quiet", "-T1", "--all-root", "-x-1"])
        .arg(&peer)
        .arg(host.path("in")));
    let (ours, theirs) = (image.metadata().unwrap().len(), peer.metadata().unwrap().len());
    eprintln!("ours {ours} bytes, mkfs.erofs {theirs}");
    assert!(ours as f64 <= theirs as f64 * 1.02, "ours {ours} bytes, mkfs.erofs {theirs}");
}

#[test]
fn the_same_closure_gives_the_same_bytes() {
    let host = Host::new();
    odd_tree(&host.path("one/odd"));
    odd_tree(&host.path("two/odd"));
    // Neither time nor owner's write permission nor hard links show.
    fs::remove_file(host.path("two/odd/hard-link")).unwrap();
    file(&host.path("two/odd/hard-link"), &support::noise(1), 0o400);
    let one = host.store.image(&closure_of(&host.path("one"), &["odd"]), &host.path("a")).unwrap();
    let two = host.store.image(&closure_of(&host.path("two"), &["odd"]), &host.path("b")).unwrap();
    assert_eq!(one.file_name(), two.file_name());
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "the images differ");
}

#[test]
fn equal_files_take_their_blocks_once_linked_or_not() {
    let host = Host::new();
    let bytes = support::noise(300_001);
    let other = bytes.iter().map(|byte| !byte).collect::<Vec<_>>();
    for dir in ["copied/tree", "linked/tree"] {
        file(&host.path(dir).join("a"), &bytes, 0o644);
        file(&host.path(dir).join("b"), &bytes, 0o755);
        file(&host.path(dir).join("other"), &other, 0o644);
    }
    fs::copy(host.path("copied/tree/a"), host.path("copied/tree/c")).unwrap();
    fs::hard_link(host.path("linked/tree/a"), host.path("linked/tree/c")).unwrap();
    let image = |dir: &str| {
        let closure = closure_of(&host.path(dir), &["tree"]);
        (host.store.image(&closure, &host.path(&format!("{dir}/images"))).unwrap(), closure)
    };
    let ((copied, closure), (linked, _)) = (image("copied"), image("linked"));
    assert!(fs::read(&copied).unwrap() == fs::read(&linked).unwrap(), "the images differ");
    assert!(copied.metadata().unwrap().len() < 2 * 300_001 + 20_000);
    if let Some(mounted) = Mounted::new(&copied) {
        assert!(listing(mounted.0.path()) == expected(&closure), "the trees differ");
    }
}

#[test]
fn an_image_is_made_once_by_however_many() {
    let host = Host::new();
    odd_tree(&host.path("in/odd"));
    let closure = closure_of(&host.path("in"), &["odd"]);
    let images = host.path("images");
    // What a dead maker left.
    fs::create_dir(&images).unwrap();
    fs::write(images.join(format!("{}.1.erofs.new", closure.digest())), vec![0xff; 10 << 20]).unwrap();
    let inodes: Vec<u64> = std::thread::scope(|scope| {
        let maker = || {
            let store = Store::open_with(&host.path("store"), options(host.dir.path())).unwrap();
            store.image(&closure, &images).unwrap().metadata().unwrap().ino()
        };
        let makers: Vec<_> = (0..8).map(|_| scope.spawn(maker)).collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect()
    });
    assert!(inodes.windows(2).all(|pair| pair[0] == pair[1]), "made more than once");
    assert_eq!(names(&images), [format!("{}.1.erofs", closure.digest())]);
    // Kept, not made again: the closure need not even be there any more.
    fs::remove_dir_all(host.path("in")).unwrap();
    host.store.image(&closure, &images).unwrap();
    let fresh = host.store.image(&closure, &host.path("elsewhere")).unwrap_err();
    assert!(matches!(fresh, StoreError::Io { .. }));
    assert!(names(&host.path("elsewhere")).is_empty());
}

#[test]
fn pruning_removes_unwanted_images_alone() {
    let host = Host::new();
    file(&host.path("in/a"), &support::noise(100_000), 0o644);
    file(&host.path("in/b"), b"b", 0o644);
    let images = host.path("images");
    assert_eq!(prune_images(&images, &[]).unwrap(), 0);
    let (a, b) = (closure_of(&host.path("in"), &["a"]), closure_of(&host.path("in"), &["b"]));
    for closure in [&a, &b] {
        host.store.image(closure, &images).unwrap();
    }
    fs::write(images.join("vmlinux"), b"kernel").unwrap();
    fs::write(images.join(format!("{}.0.erofs", b.digest())), b"older").unwrap();
    fs::write(images.join(format!("{}.1.erofs.new", a.digest())), b"dead").unwrap();
    let busy_name = format!("{}.1.erofs.new", "f".repeat(64));
    let busy = File::create(images.join(&busy_name)).unwrap();
    busy.lock().unwrap();
    let freed = prune_images(&images, &[b.digest()]).unwrap();
    assert!(freed >= 100_000, "{freed}");
    let mut kept = [format!("{}.1.erofs", b.digest()), busy_name, "vmlinux".to_owned()];
    kept.sort();
    assert_eq!(names(&images), kept);
}

#[test]
fn files_beyond_4_gib_are_placed_right() {
    if !have("fsck.erofs") {
        return;
    }
    let host = Host::new();
    fs::create_dir(host.path("in")).unwrap();
    let sparse = File::create(host.path("in/big")).unwrap();
    let size = (4u64 << 30) + 4097;
    sparse.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", size - 3).unwrap();
    file(&host.path("in/small"), b"after the big one", 0o644);
    let closure = closure_of(&host.path("in"), &["big", "small"]);
    let image = match host.store.image(&closure, &host.path("images")) {
        Err(error) if error.is_disk_full() => return eprintln!("not shown: the disk has no 4 GiB"),
        image => image.unwrap(),
    };
    let Some(mounted) = Mounted::new(&image) else { return };
    let big = File::open(mounted.0.path().join(base(0, "big"))).unwrap();
    assert_eq!(big.metadata().unwrap().len(), size);
    let mut end = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&big, &mut end, size - 3).unwrap();
    assert_eq!(&end, b"end");
    assert_eq!(fs::read(mounted.0.path().join(base(1, "small"))).unwrap(), b"after the big one");
}
