//! Fuzz target of store paths that come to an agent one by one.

use calve_agent::seed;
use calve_nix::StorePath;

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[("seed", seed)];

/// Whatever comes, what has a name in the store is a store path.
fn seed(bytes: &[u8]) {
    let store = tempfile::tempdir().expect("a directory");
    let _ = seed::receive_plain(store.path(), ".under-way-", bytes);
    for entry in std::fs::read_dir(store.path()).expect("it is there") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        assert!(StorePath::from_base_name(&name).is_ok(), "{name} is left");
        seed::remove(&store.path().join(name)).expect("it can be removed");
    }
}
