//! Pushing and pulling made-up closures.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use calve_nix::StorePath;
use calve_nix::sign::TrustedKeys;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::push::{PushOptions, push};
use calve_store::{Destination, TransferError};

use super::closures::Chain;
use super::memory::Memory;
use super::{Host, listing, names};

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn source(cache: &Arc<Memory>) -> Source {
    Source { name: cache.key.name().to_owned(), remote: Arc::clone(cache) as _ }
}

pub fn trusting(caches: &[&Arc<Memory>]) -> PullOptions {
    let trusted: TrustedKeys = caches.iter().map(|cache| cache.public()).collect();
    PullOptions {
        trusted,
        destination: Some(Destination::Private),
        flush: Some(false),
        ..PullOptions::default()
    }
}

pub fn push_to(host: &Host, cache: &Arc<Memory>, root: &StorePath, options: PushOptions) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    let (remote, store) = (Arc::clone(cache) as _, Arc::clone(&host.store));
    runtime()
        .block_on(push(store, std::slice::from_ref(root), remote, options, Arc::clone(&progress)))
        .unwrap();
    progress
}

pub fn pull_from(
    host: &Host,
    caches: &[&Arc<Memory>],
    root: &StorePath,
    options: PullOptions,
) -> (Result<Vec<StorePath>, TransferError>, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let sources: Vec<_> = caches.iter().map(|cache| source(cache)).collect();
    let store = Arc::clone(&host.store);
    let pulled = pull(store, &sources, std::slice::from_ref(root), options, Arc::clone(&progress));
    (runtime().block_on(pulled), progress)
}

/// The pushed chain in a cache.
pub fn pushed() -> (Host, Chain, Arc<Memory>) {
    let host = Host::new();
    let chain = Chain::new(&host, 1);
    let cache = Arc::new(Memory::new("cache"));
    push_to(&host, &cache, &chain.program, PushOptions::default());
    (host, chain, cache)
}

pub fn assert_equal(from: &Host, to: &Host, chain: &Chain) {
    for path in [&chain.library, &chain.middle, &chain.program] {
        let (a, b) = (from.path("nix/store"), to.path("store"));
        assert!(listing(&a.join(path.base_name())) == listing(&b.join(path.base_name())), "{path}");
    }
    let closure = to.store.closure(std::slice::from_ref(&chain.program)).unwrap();
    assert_eq!(closure.paths.len(), 3);
    let infos = to.store.path_infos(&closure).unwrap();
    let origin = from.store.closure(std::slice::from_ref(&chain.program)).unwrap();
    for (info, origin) in infos.iter().zip(from.store.path_infos(&origin).unwrap()) {
        assert_eq!(
            (&info.path, &info.nar_hash, &info.references),
            (&origin.path, &origin.nar_hash, &origin.references)
        );
        assert_eq!(info.deriver, origin.deriver);
        assert_eq!(info.signatures.len(), 1);
    }
    assert!(names(&to.path("store/.tmp")).is_empty());
}

/// Changes one byte of a file, and nothing else that can be seen of it.
pub fn spoil(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    let metadata = fs::metadata(file).unwrap();
    fs::set_permissions(file, Permissions::from_mode(metadata.mode() | 0o200)).unwrap();
    fs::write(file, bytes).unwrap();
    let times = FileTimes::new().set_modified(metadata.modified().unwrap());
    fs::File::options().write(true).open(file).unwrap().set_times(times).unwrap();
    fs::set_permissions(file, metadata.permissions()).unwrap();
}
