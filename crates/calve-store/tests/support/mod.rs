//! What the tests of this crate share: odd trees, stand-ins for a Nix installation, peers.
#![allow(dead_code, missing_docs)] // Every test binary uses its own part.

pub mod closures;
pub mod memory;
pub mod transfers;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use calve_nix::StorePath;
use calve_store::{Store, StoreOptions};
use rusqlite::Connection;
use tempfile::TempDir;

/// Whether the peer can be run; where nothing may be missing (`CI`), its absence fails the test.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--help").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is missing");
    if !found {
        eprintln!("not compared: {program} is not installed");
    }
    found
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A store beside an empty or made-up Nix, all in one temporary directory.
pub struct Host {
    pub dir: TempDir,
    pub store: Arc<Store>,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(&dir.path().join("store"), options(dir.path())).unwrap();
        Self { dir, store: Arc::new(store) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn reopen(&mut self) {
        self.store = Arc::new(Store::open_with(&self.path("store"), options(self.dir.path())).unwrap());
    }

    /// The entries of the private store that are no store's own business.
    pub fn private_entries(&self) -> Vec<String> {
        let mut names = names(&self.path("store"));
        names.retain(|name| !name.starts_with('.'));
        names
    }

    /// A database with the tables of Nix; `paths` are `(base name, references by index)`. Their directories exist.
    pub fn nix(&self, paths: &[(&str, &[usize])]) -> Vec<StorePath> {
        let db = self.path("nix/var/nix/db/db.sqlite");
        fs::create_dir_all(db.parent().unwrap()).unwrap();
        fs::create_dir_all(self.path("nix/store")).unwrap();
        let db = Connection::open(db).unwrap();
        db.execute_batch(NIX_SCHEMA).unwrap();
        let transaction = db.unchecked_transaction().unwrap();
        let paths_of: Vec<_> =
            paths.iter().map(|(base, _)| StorePath::from_base_name(base).unwrap()).collect();
        for (id, path) in paths_of.iter().enumerate() {
            transaction
                .execute("INSERT INTO ValidPaths VALUES (?, ?)", (id as i64, path.to_string()))
                .unwrap();
            fs::create_dir_all(self.path("nix/store").join(path.base_name())).unwrap();
        }
        for (id, (_, references)) in paths.iter().enumerate() {
            for reference in *references {
                let ids = (id as i64, *reference as i64);
                transaction.execute("INSERT INTO Refs VALUES (?, ?)", ids).unwrap();
            }
        }
        transaction.commit().unwrap();
        paths_of
    }
}

/// The part of Nix's schema that is read here.
pub const NIX_SCHEMA: &str = "
    PRAGMA journal_mode = wal;
    CREATE TABLE ValidPaths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT UNIQUE NOT NULL);
    CREATE TABLE Refs (referrer INTEGER NOT NULL, reference INTEGER NOT NULL, PRIMARY KEY (referrer, reference));
    CREATE INDEX IndexReferrer ON Refs(referrer);
    CREATE INDEX IndexReference ON Refs(reference);";

/// A base name whose hash part says `n`.
pub fn base(n: usize, name: &str) -> String {
    format!("{n:032}-{name}")
}

pub fn options(root: &Path) -> StoreOptions {
    StoreOptions {
        nix_db: root.join("nix/var/nix/db/db.sqlite"),
        nix_store_dir: root.join("nix/store"),
        nix_store_program: root.join("no-such-program"),
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let entry =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(entry).collect();
    names.sort();
    names
}

pub fn file(path: &Path, bytes: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Whoever is not root cannot write into a read-only file that is there already.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Bytes that no block repeats.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64 | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// A tree with everything that is easy to get wrong.
pub fn odd_tree(root: &Path) {
    for size in [0, 1, 4063, 4064, 4065, 4095, 4096, 4097, 8191, 8192, 8193, 70_000, 400_001] {
        file(&root.join(format!("size-{size}")), &noise(size), 0o644);
    }
    for (name, mode) in [("x-owner", 0o700), ("x-group", 0o670), ("x-other", 0o641), ("read-only", 0o400)] {
        file(&root.join("modes").join(name), name.as_bytes(), mode);
    }
    let names: [&[u8]; 12] =
        [b"a b", b"\xff\xfe", b"\n", b"-n", b"!", b"..x", b".x", b"Zz", b"zz", "ü".as_bytes(), b"a.", b"a"];
    for name in names {
        file(&root.join("names").join(OsStr::from_bytes(name)), name, 0o644);
    }
    file(&root.join("names").join("n".repeat(255)), b"long", 0o755);
    fs::create_dir_all(root.join("empty/dir")).unwrap();
    let mut deep = root.join("deep");
    for level in 0..100 {
        deep.push(format!("level-{level}"));
    }
    file(&deep.join("bottom"), b"deep", 0o644);
    for (name, target) in
        [("relative", "size-1"), ("dangling", "no/such/file"), ("up", "../.."), ("absolute", "/nix/store")]
    {
        symlink(target, root.join(name)).unwrap();
    }
    symlink("t".repeat(4000), root.join("long-link")).unwrap();
    symlink("u".repeat(4090), root.join("longer-link")).unwrap();
    fs::hard_link(root.join("size-1"), root.join("hard-link")).unwrap();
}

/// Everything that two equal trees agree in: path, kind, executable bit, contents or target.
pub fn listing(root: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut queue = vec![root.to_owned()];
    while let Some(path) = queue.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if metadata.is_dir() {
            queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            found.push((name, "directory".into(), vec![]));
        } else if metadata.is_symlink() {
            found.push((name, "link".into(), fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()));
        } else {
            let kind = if metadata.mode() & 0o100 != 0 { "executable" } else { "file" };
            found.push((name, kind.into(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}
