//! Pulling whole closures, near and far.

use std::time::Duration;

use calve_store::push::DEFAULT_LEVEL;

use super::bound::Bound;
use super::engine::PULL_HTTP;
use super::make::{Made, Maker};
use super::nix::NixRoot;
use super::proxy::Proxy;
use super::spent::Spent;
use super::{Bench, faster};
use crate::table::Table;
use crate::times::Times;

/// How many times faster than Nix's quickest way over loopback, and than the machine's own bound.
const NEAR_LEAST: f64 = 1.0;
const BOUND_LEAST: f64 = 0.6;
/// Round trips at which many paths are pulled, in milliseconds.
const FAR_MILLIS: [u64; 2] = [20, 50];
/// How many times faster than `nix copy`, and than `nix-store -r` with as many jobs as help.
const COPY_LEAST: f64 = 4.0;
const SUBSTITUTE_LEAST: f64 = 1.2;
/// The round trip at which what is known of a closure is asked for, and how long that may take.
const METADATA_MILLIS: u64 = 100;
const METADATA_MOST: f64 = 0.5;

/// Trees with so many files stay until the end: ext4 gives out no inode that was free for less than five minutes, and
/// whoever makes files after many were removed looks through all of those.
const FILES_KEPT_MIN: usize = 1000;

impl Bench {
    pub(super) fn pull(&mut self, what: &str, made: &Made, table: &mut Table) -> anyhow::Result<()> {
        let bound = Bound::new(&made.files(&self.nix), DEFAULT_LEVEL)?;
        let files = tempfile::tempdir()?;
        let cache = format!("file://{}", files.path().display());
        self.nix.copy_to(&cache, &made.root, DEFAULT_LEVEL)?;
        let [mut ours, mut by_http, mut from_files, mut from_server, mut least] = [const { Spent::new() }; 5];
        let is_kept = self.is_kept(made);
        // In turns, each of the five in every place: what a file system has to do depends on what was done to it before.
        for turn in 0..self.size.pull_runs * 5 {
            let target = NixRoot::new()?;
            let server = &self.server;
            let mut pull = |verb: &str, spent: &mut Spent| -> anyhow::Result<()> {
                let cost = spent
                    .on(Some(server), || super::call(verb, &target, (server, &server.url), &made.root, 0))?;
                self.peak_kib = self.peak_kib.max(cost.peak_kib);
                target.verify(&made.root)
            };
            match (turn / 5 + turn) % 5 {
                0 => {
                    let dir = tempfile::Builder::new().prefix("calve-bench-bound-").tempdir()?;
                    least.by(bound.measure(dir.path())?);
                    self.kept.0.extend(is_kept.then_some(dir));
                }
                1 => pull("pull", &mut ours)?,
                2 => pull(PULL_HTTP, &mut by_http)?,
                3 => from_files.on(None, || target.copy_from(&cache, &made.root))?,
                _ => from_server.on(Some(server), || target.copy_from(&server.url, &made.root))?,
            }
            self.kept.1.extend(is_kept.then_some(target));
        }
        // Over HTTP: as a cache on another host is pulled from, though both share one here.
        for (how, times, nearest, of_bound) in
            [("pull", &ours, Some(NEAR_LEAST), Some(BOUND_LEAST)), ("pull over HTTP", &by_http, None, None)]
        {
            let row = |beside: &str| format!("{how}, {what}, loopback; {beside}");
            faster(table, &row("Nix from the same cache"), times, "nix copy", &from_server, nearest);
            faster(table, &row("Nix from files"), times, "nix copy", &from_files, nearest);
            let beside = "decompress, hash, write";
            faster(table, &row("of the machine's bound"), times, beside, &least, of_bound);
        }
        Ok(())
    }

    /// Whether its trees stay until the end.
    fn is_kept(&self, made: &Made) -> bool {
        made.files(&self.nix).len() >= FILES_KEPT_MIN
    }

    /// Leaves a tree of many files until the end.
    pub(super) fn leave(&mut self, made: &Made, target: NixRoot) {
        let is_kept = self.is_kept(made);
        self.kept.1.extend(is_kept.then_some(target));
    }

    pub(super) async fn pull_far(&mut self, made: &Made, table: &mut Table) -> anyhow::Result<()> {
        for millis in FAR_MILLIS {
            let proxy = Proxy::start(self.server.port(), Duration::from_millis(millis)).await?;
            let [mut ours, mut copied, mut substituted] = [const { Spent::new() }; 3];
            for _ in 0..self.size.far_runs {
                tokio::task::block_in_place(|| -> anyhow::Result<()> {
                    let (url, server) = (proxy.url.as_str(), &self.server);
                    let target = NixRoot::new()?;
                    let cost = ours
                        .on(Some(server), || super::call(PULL_HTTP, &target, (server, url), &made.root, 0))?;
                    self.peak_kib = self.peak_kib.max(cost.peak_kib);
                    let target = NixRoot::new()?;
                    copied.on(Some(server), || target.copy_from(url, &made.root))?;
                    let target = NixRoot::new()?;
                    substituted.on(Some(server), || target.substitute(url, &made.root))
                })?;
            }
            let row = format!("pull, {} paths, {millis} ms", self.size.paths);
            faster(table, &row, &ours, "nix copy", &copied, Some(COPY_LEAST));
            faster(table, &row, &ours, "nix-store -r, 128 jobs", &substituted, Some(SUBSTITUTE_LEAST));
        }
        Ok(())
    }

    /// What has to be known of many paths before the first of their chunks can be asked for.
    pub(super) async fn metadata(&mut self, table: &mut Table) -> anyhow::Result<()> {
        let count = self.size.metadata_paths;
        let made = Maker::new(&self.nix)?.many_paths("tiny", count, 4 << 10, 0)?;
        let url = self.server.url.clone();
        self.keep(&made, &url)?;
        let proxy = Proxy::start(self.server.port(), Duration::from_millis(METADATA_MILLIS)).await?;
        let (mut ours, mut theirs) = (Times::new(), Spent::new());
        for _ in 0..self.size.far_runs {
            tokio::task::block_in_place(|| -> anyhow::Result<()> {
                let nix = NixRoot::new()?;
                ours.push(super::call("metadata", &nix, (&self.server, &proxy.url), &made.root, 0)?.inner);
                // It asks for one path after the other.
                match self.size.far_runs {
                    1 => Ok(()),
                    _ => theirs.on(Some(&self.server), || nix.path_info(&proxy.url, &made.root)),
                }
            })?;
        }
        let row = format!("metadata of {count} paths, {METADATA_MILLIS} ms");
        let seconds = ours.median().as_secs_f64();
        if self.size.far_runs > 1 {
            let beside = format!("nix path-info -r {theirs}");
            table.at_least(&row, format!("{seconds:.3} s"), beside, theirs.seconds() / seconds, None);
        }
        table.limit(&row, format!("{seconds:.3} s"), seconds, METADATA_MOST, "s");
        Ok(())
    }
}
