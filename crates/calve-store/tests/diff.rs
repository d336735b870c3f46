//! What is between closures, what they consist of, and what a cache lacks of them.

mod support;

use std::sync::Arc;

use calve_nix::StorePath;
use calve_store::diff::{diff, missing_in, tree};
use calve_store::index::LocalIndex;
use calve_store::push::PushOptions;
use support::closures::{Chain, path, text};
use support::memory::Memory;
use support::transfers::{push_to, runtime};
use support::{Host, file};

#[test]
fn a_rebuild_differs_in_paths_and_moves_no_chunk() {
    let host = Host::new();
    let (old, new) = (Chain::new(&host, 1), Chain::new(&host, 2));
    let index = LocalIndex::open(&host.path("chunks.sqlite")).unwrap();
    let roots = |chain: &Chain| [chain.program.clone()];
    for index in [None, Some(&index)] {
        let found = diff(&host.store, index, &roots(&old), &roots(&new)).unwrap();
        let names: Vec<_> = found.packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["library", "middle", "program"]);
        assert!(found.packages.iter().all(|package| package.is_rebuild()));
        assert_eq!((found.moved_chunks, found.moved_bytes), (0, 0));
        assert_eq!(found.before_bytes, found.after_bytes);
    }
    let other = path(7, "program-3.1");
    host.package(&other, &[&new.library], |root| {
        file(&root.join("bin/program"), &text(9, 200_000, &[&new.library]), 0o555);
    });
    let found = diff(&host.store, None, &roots(&new), std::slice::from_ref(&other)).unwrap();
    let versions: Vec<_> = found.packages.iter().map(|p| (p.before.clone(), p.after.clone())).collect();
    let one = |version: &str| vec![version.to_owned()];
    assert_eq!(versions, [(one("2.0"), vec![]), (one("3.0"), one("3.1"))]);
    assert!((200_000..300_000).contains(&found.moved_bytes), "{}", found.moved_bytes);
}

#[test]
fn a_tree_counts_each_path_once() {
    let host = Host::new();
    let chain = Chain::new(&host, 1);
    let tree = tree(&host.store, std::slice::from_ref(&chain.program)).unwrap();
    let of = |path: &StorePath| tree.iter().find(|at| at.path == *path).unwrap();
    let (library, middle, program) = (of(&chain.library), of(&chain.middle), of(&chain.program));
    assert_eq!(library.closure_size, library.nar_size);
    assert_eq!(middle.references, std::slice::from_ref(&chain.library));
    assert_eq!(program.closure_size, program.nar_size + middle.nar_size + library.nar_size);
    let cache = Arc::new(Memory::new("cache"));
    push_to(&host, &cache, &chain.middle, PushOptions::default());
    let missing = missing_in(Arc::clone(&host.store), std::slice::from_ref(&chain.program), &*cache);
    assert_eq!(runtime().block_on(missing).unwrap(), std::slice::from_ref(&chain.program));
}
