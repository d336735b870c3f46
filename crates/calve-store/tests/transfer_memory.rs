//! Memory of a push and a pull does not grow with the closure.

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use calve_nix::sign::TrustedKeys;
use calve_store::cache::{Cache, CacheOptions};
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::push::{PushOptions, push};
use calve_store::remote::Remote;
use calve_store::{Destination, Store};
use support::closures::path;
use support::transfers::runtime;
use support::{Host, options};

/// Most memory that either side may take, in KiB, whatever the size of the closure.
const PEAK_KIB_MAX: u64 = 256 * 1024;
/// Size of the closure: larger than that memory.
const CLOSURE_BYTES: usize = 320 << 20;
/// What a child does, and where.
const CHILD: &str = "CALVE_TEST_TRANSFER";

/// The largest amount of memory that this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// No test by itself: a process of its own for each side, whose memory is its own.
#[test]
fn child_that_moves_a_large_closure() {
    let Ok(side) = std::env::var(CHILD) else { return };
    let root = std::env::current_dir().unwrap();
    let program = path(1, "large-1.0");
    let roots = std::slice::from_ref(&program);
    runtime().block_on(async {
        let cache = Cache::open(CacheOptions::local(&root.join("cache"))).await.unwrap();
        let trusted: TrustedKeys = cache.public_keys().join(" ").parse().unwrap();
        let remote: Arc<dyn Remote> = Arc::new(cache);
        let open = |name: &str| Arc::new(Store::open_with(&root.join(name), options(&root)).unwrap());
        if side == "push" {
            push(open("store"), roots, remote, PushOptions::default(), Arc::default()).await.unwrap();
        } else {
            let options =
                PullOptions { destination: Some(Destination::Private), trusted, ..PullOptions::default() };
            let sources = [Source { name: "cache".to_owned(), remote }];
            let store =
                Arc::new(Store::open_with(&root.join("to"), support::options(&root.join("none"))).unwrap());
            assert_eq!(pull(store, &sources, roots, options, Arc::default()).await.unwrap().len(), 1);
        }
    });
    let peak = peak_kib();
    assert!(peak <= PEAK_KIB_MAX, "the {side} took {peak} KiB");
    eprintln!("{side}: {} MiB", peak / 1024);
}

#[test]
fn a_large_closure_moves_in_bounded_memory() {
    let host = Host::new();
    host.package(&path(1, "large-1.0"), &[], |root| {
        // Different everywhere, and cheap to make.
        let mut bytes = support::noise(8 << 20);
        for n in 0..CLOSURE_BYTES / bytes.len() {
            bytes.iter_mut().step_by(1021).for_each(|byte| *byte = byte.wrapping_add(n as u8 | 1));
            support::file(&root.join(format!("{n}")), &bytes, 0o444);
        }
    });
    for side in ["push", "pull"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_moves_a_large_closure", "--nocapture"])
            .env(CHILD, side)
            .current_dir(host.dir.path())
            .stdout(Stdio::null())
            .status();
        assert!(child.unwrap().success(), "{side}");
    }
}
