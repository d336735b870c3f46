//! Files of pulled paths that are second names of equal ones that lie here: only those that are what they should be.

mod support;

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use calve_nix::StorePath;
use calve_store::index::LocalIndex;
use calve_store::pull::PullOptions;
use calve_store::push::PushOptions;
use support::closures::{path, text};
use support::memory::Memory;
use support::transfers::{pull_from, push_to, spoil, trusting};
use support::{Host, file, listing};

/// Where versions of an app are made, and where they are pulled to.
struct Hosts {
    from: Host,
    to: Host,
    cache: Arc<Memory>,
    options: PullOptions,
    library: StorePath,
}

impl Hosts {
    fn new() -> Self {
        let (from, to, cache) = (Host::new(), Host::new(), Arc::new(Memory::new("cache")));
        let index = Arc::new(LocalIndex::open(&to.path("chunks.sqlite")).unwrap());
        let options = PullOptions { index: Some(index), ..trusting(&[&cache]) };
        let library = path(1000, "library-1.0");
        from.package(&library, &[], |root| file(&root.join("lib/library.so"), b"so small", 0o444));
        Self { from, to, cache, options, library }
    }

    /// An app that names itself and the library, with the notes of this version.
    fn app(&self, version: u64) -> StorePath {
        let app = path(version, "app-1.0");
        self.from.package(&app, &[&app, &self.library], |root| {
            file(&root.join("bin/tool"), &text(4, 200_000, &[&self.library]), 0o555);
            file(&root.join("lib/large.so"), &text(5, 3_000_000, &[]), 0o444);
            file(&root.join("lib/twice.so"), &text(8, 1_000_000, &[]).repeat(2), 0o444);
            file(&root.join("share/self"), &text(6, 600_000, &[&app]), 0o444);
            file(&root.join("share/text"), &text(7, 600_000, &[]), 0o444);
            file(&root.join("zz/notes"), &text(100 + version, 5000, &[]), 0o444);
        });
        app
    }

    /// Pushes a path and pulls it; it comes as it is.
    fn pull(&self, path: &StorePath) {
        push_to(&self.from, &self.cache, path, PushOptions::default());
        pull_from(&self.to, &[&self.cache], path, self.options.clone()).0.unwrap();
        let there = self.from.path("nix/store").join(path.base_name());
        assert_eq!(listing(&there), listing(&self.here(path)));
    }

    fn here(&self, path: &StorePath) -> PathBuf {
        self.to.path("store").join(path.base_name())
    }

    fn file(&self, path: &StorePath, name: &str) -> Metadata {
        fs::metadata(self.here(path).join(name)).unwrap()
    }

    /// Which files of an app are those of another one.
    fn twins(&self, one: &StorePath, other: &StorePath) -> Vec<&'static str> {
        let names = ["bin/tool", "lib/large.so", "lib/twice.so", "share/self", "share/text", "zz/notes"];
        let is_twin = |name: &&str| self.file(one, name).ino() == self.file(other, name).ino();
        names.into_iter().filter(is_twin).collect()
    }
}

#[test]
fn equal_files_are_one_file() {
    let hosts = Hosts::new();
    let [one, two] = [1, 2].map(|version| hosts.app(version));
    hosts.pull(&one);
    hosts.pull(&two);
    // What names the app itself has another name in it, and the notes share a chunk with the text before them.
    assert_eq!(hosts.twins(&one, &two), ["bin/tool", "lib/large.so", "lib/twice.so"]);
    let tool = hosts.file(&two, "bin/tool");
    assert_eq!((tool.mode() & 0o7777, tool.mtime(), tool.nlink()), (0o555, 1, 2));
    // It stays when the other one goes.
    hosts.to.store.remove(&one).unwrap();
    assert_eq!(hosts.file(&two, "bin/tool").nlink(), 1);
}

#[test]
fn a_spoilt_file_gets_no_second_name() {
    let hosts = Hosts::new();
    let [one, two] = [1, 2].map(|version| hosts.app(version));
    hosts.pull(&one);
    spoil(&hosts.here(&one).join("lib/large.so"), 1_000_000);
    let before = fs::read(hosts.here(&one).join("lib/large.so")).unwrap();
    hosts.pull(&two);
    assert!(hosts.twins(&one, &two).is_empty(), "nothing is believed any more");
    let spoilt = hosts.file(&one, "lib/large.so");
    assert_eq!((spoilt.mode() & 0o7777, spoilt.mtime(), spoilt.nlink()), (0o444, 1, 1));
    assert!(fs::read(hosts.here(&one).join("lib/large.so")).unwrap() == before);
}

#[test]
fn a_file_that_is_not_sealed_gets_no_second_name() {
    let hosts = Hosts::new();
    let [one, two] = [1, 2].map(|version| hosts.app(version));
    hosts.pull(&one);
    fs::set_permissions(hosts.here(&one).join("lib/large.so"), Permissions::from_mode(0o644)).unwrap();
    hosts.pull(&two);
    assert_eq!(hosts.twins(&one, &two), ["bin/tool", "lib/twice.so"]);
    assert_eq!(hosts.file(&two, "lib/large.so").mode() & 0o7777, 0o444);
    assert_eq!(hosts.file(&one, "lib/large.so").nlink(), 1);
}

/// What is done with a path in its place would be done with both.
#[test]
fn a_path_that_is_a_file_is_one_of_its_own() {
    let hosts = Hosts::new();
    let [one, two] = [1, 2].map(|version| {
        let path = path(version, "script");
        hosts.from.package(&path, &[], |root| {
            fs::remove_dir(root).unwrap();
            file(root, &text(8, 300_000, &[]), 0o555);
        });
        path
    });
    hosts.pull(&one);
    hosts.pull(&two);
    let inode = |path| fs::metadata(hosts.here(path)).unwrap().ino();
    assert_ne!(inode(&one), inode(&two));
}
