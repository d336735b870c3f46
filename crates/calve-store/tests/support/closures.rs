//! Made-up closures in a made-up Nix.

use std::fs;
use std::path::Path;

use calve_nix::StorePath;
use calve_store::archive::hash_tree;
use rusqlite::Connection;

use super::{Host, file};

/// The tables of Nix 2.8.
const SCHEMA: &str = "
    PRAGMA synchronous = off;
    CREATE TABLE IF NOT EXISTS ValidPaths (
        id integer primary key autoincrement not null, path text unique not null, hash text not null,
        registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text, ca text);
    CREATE TABLE IF NOT EXISTS Refs (
        referrer integer not null, reference integer not null, primary key (referrer, reference));
    CREATE INDEX IF NOT EXISTS IndexReferrer on Refs(referrer);
    CREATE INDEX IF NOT EXISTS IndexReference on Refs(reference);";

/// A store path whose hash part follows from the seed.
pub fn path(seed: u64, name: &str) -> StorePath {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(calve_nix::store_path::BASE32_ALPHABET[(state >> 20) as usize % 32])
    };
    let hash: String = (0..32).map(|_| next()).collect();
    StorePath::from_base_name(&format!("{hash}-{name}")).unwrap()
}

impl Host {
    /// Makes the path valid in this host's Nix, with whatever `fill` puts below its directory.
    pub fn package(&self, path: &StorePath, references: &[&StorePath], fill: impl FnOnce(&Path)) {
        let place = self.path("nix/store").join(path.base_name());
        fs::create_dir_all(&place).unwrap();
        fill(&place);
        let (hash, size) = hash_tree(&place).unwrap();
        let file = self.path("nix/var/nix/db/db.sqlite");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let db = Connection::open(file).unwrap();
        db.execute_batch(SCHEMA).unwrap();
        db.execute(
            "INSERT INTO ValidPaths (path, hash, registrationTime, narSize, deriver) VALUES (?, ?, 1, ?, ?)",
            (path.to_string(), hash.to_string(), size as i64, format!("{path}.drv")),
        )
        .unwrap();
        for reference in references {
            let id = "(SELECT id FROM ValidPaths WHERE path = ?)";
            let sql = format!("INSERT INTO Refs VALUES ({id}, {id})");
            db.execute(&sql, (path.to_string(), reference.to_string())).unwrap();
        }
    }
}

/// Text that names all of `paths` here and there among bytes that nothing repeats.
pub fn text(seed: u64, bytes: usize, paths: &[&StorePath]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 100);
    let mut state = seed | 1;
    let mut turn = 0;
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("{:013x}\n", state >> 12).as_bytes());
        if !paths.is_empty() && state >> 56 == 0 {
            out.extend_from_slice(paths[turn % paths.len()].to_string().as_bytes());
            turn += 1;
        }
    }
    out
}

/// Three packages: a library, one that uses it and names itself, and a program that uses both.
pub struct Chain {
    pub library: StorePath,
    pub middle: StorePath,
    pub program: StorePath,
}

impl Chain {
    /// `generation` changes all hash parts and nothing else.
    pub fn new(host: &Host, generation: u64) -> Self {
        let seed = generation * 100;
        let chain = Self {
            library: path(seed + 1, "library-1.0"),
            middle: path(seed + 2, "middle-2.0"),
            program: path(seed + 3, "program-3.0"),
        };
        let Self { library, middle, program } = &chain;
        host.package(library, &[], |root| {
            file(&root.join("lib/library.so"), &text(1, 1_500_000, &[]), 0o444);
            file(&root.join("empty"), b"", 0o444);
        });
        host.package(middle, &[library, middle], |root| {
            file(&root.join("lib/middle.so"), &text(2, 1_000_000, &[library, middle]), 0o555);
            std::os::unix::fs::symlink(library.to_string(), root.join("library")).unwrap();
        });
        host.package(program, &[library, middle], |root| {
            file(&root.join("bin/program"), &text(3, 500_000, &[library, middle]), 0o555);
            // The same as in the library: to be sent once.
            file(&root.join("share/copy"), &text(1, 1_500_000, &[]), 0o444);
            for n in 0..60 {
                file(&root.join(format!("share/{n:03}")), &text(1000 + n, n as usize * 10, &[middle]), 0o444);
            }
        });
        chain
    }
}
