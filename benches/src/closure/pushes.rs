//! Pushing whole closures, and what little changed of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use calve_store::push::DEFAULT_LEVEL;

use super::engine::{PULL_HTTP, PUSH_HTTP};
use super::make::{Made, Maker};
use super::nix::NixRoot;
use super::proxy::Proxy;
use super::push_bound::PushBound;
use super::server::Server;
use super::spent::Spent;
use super::{Bench, Closures, SAME_LEVEL, faster, mebibytes};
use crate::table::Table;

/// How many times faster than `nix copy` at the same level, and at our default.
const SAME_LEVEL_LEAST: f64 = 1.8;
const DEFAULT_LEVEL_LEAST: f64 = 4.0;
/// Bytes at our default level, of Nix's at its own.
const DEFAULT_BYTES_MOST: f64 = 1.2;
/// What a change of one file moves, of the closure, beyond that file.
const ONE_FILE_SHARE: f64 = 0.01;
const ONE_FILE_MOST: Duration = Duration::from_secs(1);
/// What a rebuild moves that changes nothing but hashes.
const REBUILT_SHARE: f64 = 0.005;

impl Bench {
    pub(super) fn push(&mut self, what: &str, made: &Made, table: &mut Table) -> anyhow::Result<()> {
        let [mut same, mut default, mut by_http, mut to_files, mut to_server, mut least] =
            [const { Spent::new() }; 6];
        let bound = PushBound::new(&made.files(&self.nix))?;
        let (mut our_bytes, mut same_bytes, mut http_bytes, mut their_bytes) = (0, 0, 0, 0);
        for _ in 0..self.size.runs {
            for (verb, level, times, bytes) in [
                ("push", SAME_LEVEL, &mut same, &mut same_bytes),
                ("push", DEFAULT_LEVEL, &mut default, &mut our_bytes),
                (PUSH_HTTP, DEFAULT_LEVEL, &mut by_http, &mut http_bytes),
            ] {
                let server = Server::start()?;
                // Nothing is known from before.
                let _ = std::fs::remove_file(self.nix.dir().join("chunks.sqlite"));
                let nix = &self.nix;
                let push = || super::call(verb, nix, (&server, &server.url), &made.root, level);
                let cost = times.on(Some(&server), push)?;
                *bytes = cost.bytes_moved;
                self.peak_kib = self.peak_kib.max(cost.peak_kib);
                self.server_peak_kib = self.server_peak_kib.max(server.peak_kib()?);
            }
            let files = tempfile::tempdir()?;
            let cache = format!("file://{}", files.path().display());
            to_files.on(None, || self.nix.copy_to(&cache, &made.root, SAME_LEVEL))?;
            their_bytes = size_of(&files.path().join("nar"))?;
            let server = Server::start()?;
            self.nix.allow(&server.token)?;
            to_server.on(Some(&server), || self.nix.copy_to(&server.url, &made.root, SAME_LEVEL))?;
            self.server_peak_kib = self.server_peak_kib.max(server.peak_kib()?);
            let dir = tempfile::Builder::new().prefix("calve-bench-bound-").tempdir()?;
            least.by(bound.measure(dir.path(), DEFAULT_LEVEL)?);
        }
        let _ = std::fs::remove_file(self.nix.dir().join("chunks.sqlite"));
        let row = |level: i32, to: &str| format!("push, {what}, zstd -{level}; Nix -{SAME_LEVEL} to {to}");
        for (times, level, least) in
            [(&same, SAME_LEVEL, SAME_LEVEL_LEAST), (&default, DEFAULT_LEVEL, DEFAULT_LEVEL_LEAST)]
        {
            faster(table, &row(level, "the same cache"), times, "nix copy", &to_server, Some(least));
            faster(table, &row(level, "files"), times, "nix copy", &to_files, None);
        }
        // As a cache on another host is pushed to, though both share one here.
        let http = |beside: &str| format!("push over HTTP, {what}, zstd -{DEFAULT_LEVEL}; {beside}");
        let nix = format!("Nix -{SAME_LEVEL} to the same cache");
        faster(table, &http(&nix), &by_http, "nix copy", &to_server, None);
        faster(table, &http("of the machine's bound"), &by_http, "bound", &least, None);
        faster(table, &http("the bound beside Nix to the same cache"), &least, "nix copy", &to_server, None);
        for (how, level, bytes) in [
            ("push", SAME_LEVEL, same_bytes),
            ("push", DEFAULT_LEVEL, our_bytes),
            ("push over HTTP", DEFAULT_LEVEL, http_bytes),
        ] {
            let ratio = bytes as f64 / their_bytes as f64;
            let (ours, theirs) = (mebibytes(bytes), format!("nix copy {}", mebibytes(their_bytes)));
            table.ratio(
                &format!("{how}, {what}, bytes, zstd -{level}"),
                ours,
                theirs,
                ratio,
                Some(DEFAULT_BYTES_MOST),
            );
        }
        let url = self.server.url.clone();
        self.keep(made, &url)?;
        Ok(())
    }

    /// One file changed in a closure that both sides had before.
    pub(super) async fn one_file(&mut self, closures: &Closures, table: &mut Table) -> anyhow::Result<()> {
        let maker = Maker::new(&self.nix)?;
        let small = maker.changed(&closures.small, "dir-7/file-351")?;
        let large = maker.changed(&closures.large, "lib/lib1.so")?;
        for (what, before, (after, file)) in
            [("small files", &closures.small, small), ("large files", &closures.large, large)]
        {
            let most = (after.archive_bytes as f64 * ONE_FILE_SHARE) as u64 + file;
            let what = format!("one file of {what}");
            self.push_in_time(&what, before, &after, table)?;
            self.change(&what, before, &after, most, table).await?;
            self.pull_in_time(&what, before, &after, table)?;
        }
        Ok(())
    }

    /// The push of a change as a user does it, to a cache of its own that has what was before.
    fn push_in_time(
        &mut self,
        what: &str,
        before: &Made,
        after: &Made,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let server = Server::start()?;
        let mut push = |made: &Made| -> anyhow::Result<()> {
            let cost = super::call("push", &self.nix, (&server, &server.url), &made.root, DEFAULT_LEVEL)?;
            self.peak_kib = self.peak_kib.max(cost.peak_kib);
            Ok(())
        };
        push(before)?;
        // The change is pushed once more later, which shall not find it known.
        let index = KeptIndex::of(self.nix.dir())?;
        let mut spent = Spent::new();
        spent.on(Some(&server), || push(after))?;
        index.restore()?;
        in_time(table, &format!("push, {what}, time"), &spent);
        Ok(())
    }

    /// The pull of a change as a user does it, from a cache on his host.
    fn pull_in_time(
        &mut self,
        what: &str,
        before: &Made,
        after: &Made,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let (target, server) = (NixRoot::new()?, &self.server);
        let pull = |made: &Made| super::call("pull", &target, (server, &server.url), &made.root, 0);
        pull(before)?;
        let mut spent = Spent::new();
        let cost = spent.on(Some(server), || pull(after))?;
        self.peak_kib = self.peak_kib.max(cost.peak_kib);
        in_time(table, &format!("pull, {what}, time"), &spent);
        target.verify(&after.root)?;
        self.leave(after, target);
        Ok(())
    }

    /// All path hashes new, as after a change at the bottom.
    pub(super) async fn rebuilt(&mut self, before: &Made, table: &mut Table) -> anyhow::Result<()> {
        let (paths, bytes) = (self.size.paths, self.size.path_bytes);
        let after = Maker::new(&self.nix)?.many_paths("many", paths, bytes, 1)?;
        let most = (after.archive_bytes as f64 * REBUILT_SHARE) as u64;
        self.change("a rebuild of many paths", before, &after, most, table).await
    }

    async fn change(
        &mut self,
        what: &str,
        before: &Made,
        after: &Made,
        most: u64,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let target = NixRoot::new()?;
        let pulled = super::call("pull", &target, (&self.server, &self.server.url), &before.root, 0)?;
        self.peak_kib = self.peak_kib.max(pulled.peak_kib);
        // What moves is counted on a line that is left aside on one host.
        for (verb, how) in [(PUSH_HTTP, "push over HTTP"), (PULL_HTTP, "pull over HTTP")] {
            let proxy = Proxy::start(self.server.port(), Duration::ZERO).await?;
            let nix = if verb == PUSH_HTTP { &self.nix } else { &target };
            let server = (&self.server, proxy.url.as_str());
            let mut spent = Spent::new();
            let change = || super::call(verb, nix, server, &after.root, DEFAULT_LEVEL);
            let cost = tokio::task::block_in_place(|| spent.on(Some(&self.server), change))?;
            self.peak_kib = self.peak_kib.max(cost.peak_kib);
            let moved = proxy.bytes();
            let ratio = moved as f64 / most as f64;
            let target = format!("at most {}", mebibytes(most));
            table.ratio(
                &format!("{how}, {what}, bytes on the line"),
                mebibytes(moved),
                target,
                ratio,
                Some(1.0),
            );
            table.note(&format!("{how}, {what}, time"), format!("{:.3} s", spent.seconds()));
        }
        target.verify(&after.root)?;
        self.leave(after, target);
        Ok(())
    }
}

/// A row of what one changed file may take.
fn in_time(table: &mut Table, row: &str, spent: &Spent) {
    let seconds = spent.seconds();
    table.limit(row, format!("{seconds:.3} s"), seconds, ONE_FILE_MOST.as_secs_f64(), "s");
}

/// The index of local chunks as it was once.
struct KeptIndex {
    dir: PathBuf,
    copy: tempfile::TempDir,
}

impl KeptIndex {
    /// Everything is in these, while no process has it open.
    const FILES: [&str; 2] = ["chunks.sqlite", "chunks.sqlite-wal"];

    fn of(dir: &Path) -> anyhow::Result<Self> {
        let copy = tempfile::tempdir()?;
        for file in Self::FILES {
            std::fs::copy(dir.join(file), copy.path().join(file))?;
        }
        Ok(Self { dir: dir.to_owned(), copy })
    }

    fn restore(self) -> anyhow::Result<()> {
        for file in Self::FILES {
            std::fs::copy(self.copy.path().join(file), self.dir.join(file))?;
        }
        Ok(std::fs::remove_file(self.dir.join("chunks.sqlite-shm"))?)
    }
}

fn size_of(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
