//! Closures pushed and pulled, beside real Nix doing the same on the same line at the same level of zstd.
//!
//! All lies on one host: the cache takes its share of the processors that a peer which writes to a directory has for itself.

mod bound;
mod content;
pub mod engine;
pub mod make;
pub mod nix;
pub mod proxy;
mod pulls;
mod push_bound;
mod pushes;
pub mod server;
mod spent;
mod stored;
mod visible;

use calve_store::push::DEFAULT_LEVEL;

use self::engine::{Cost, call};
use self::make::{Made, Maker};
use self::nix::NixRoot;
use self::server::Server;
use self::spent::Spent;
use crate::table::Table;

/// Level of zstd that Nix takes where it is told nothing, and that both sides are compared at.
const SAME_LEVEL: i32 = 3;
/// Most memory of either side, in MiB.
const PEAK_MIB: f64 = 256.0;

/// How much there is of everything.
#[derive(Clone, Copy)]
pub struct Size {
    pub small_files: usize,
    pub large_files: usize,
    pub large_file_bytes: usize,
    pub paths: usize,
    pub path_bytes: usize,
    pub metadata_paths: usize,
    /// Paths of a cache in which one is looked up.
    pub stored_paths: usize,
    /// Repetitions of pushes on the plain line.
    pub runs: usize,
    /// And of pulls.
    pub pull_runs: usize,
    /// Repetitions where every round trip counts.
    pub far_runs: usize,
}

pub const FULL: Size = Size {
    small_files: 20_000,
    large_files: 8,
    large_file_bytes: 128 << 20,
    paths: 300,
    path_bytes: 4700 << 10,
    metadata_paths: 1000,
    stored_paths: 1_000_000,
    runs: 3,
    pull_runs: 4,
    far_runs: 3,
};
pub const QUICK: Size = Size {
    small_files: 5000,
    large_files: 4,
    large_file_bytes: 64 << 20,
    paths: 300,
    path_bytes: 512 << 10,
    metadata_paths: 1000,
    stored_paths: 100_000,
    runs: 1,
    pull_runs: 4,
    far_runs: 1,
};

/// The closures, and the cache that holds them for the pulls.
struct Bench {
    size: Size,
    nix: NixRoot,
    server: Server,
    peak_kib: u64,
    server_peak_kib: u64,
    /// What is removed at the end only.
    kept: (Vec<tempfile::TempDir>, Vec<NixRoot>),
}

struct Closures {
    small: Made,
    large: Made,
    many: Made,
}

/// All of it, or only what is `near`.
pub async fn measure(size: Size, near: bool, table: &mut Table) -> anyhow::Result<()> {
    let (nix, server, kept) = (NixRoot::new()?, Server::start()?, Default::default());
    let mut bench = Bench { size, nix, server, peak_kib: 0, server_peak_kib: 0, kept };
    let closures = {
        let maker = Maker::new(&bench.nix)?;
        Closures {
            small: maker.small_files(size.small_files)?,
            large: maker.large_files(size.large_files, size.large_file_bytes)?,
            many: maker.many_paths("many", size.paths, size.path_bytes, 0)?,
        }
    };
    for (what, made) in closures.named() {
        table.note(&format!("{what}: its archives"), mebibytes(made.archive_bytes));
    }
    for (what, made) in closures.named() {
        bench.push(what, made, table)?;
    }
    for (what, made) in closures.named().into_iter().take(2).rev() {
        bench.pull(what, made, table)?;
    }
    if !near {
        bench.pull_far(&closures.many, table).await?;
    }
    bench.one_file(&closures, table).await?;
    bench.rebuilt(&closures.many, table).await?;
    bench.metadata(table).await?;
    if !near {
        bench.stored(table)?;
        bench.visible(&closures.many, table).await?;
    }
    bench.server_peak_kib = bench.server_peak_kib.max(bench.server.peak_kib()?);
    for (who, kib) in [("client", bench.peak_kib), ("server", bench.server_peak_kib)] {
        let mib = kib as f64 / 1024.0;
        table.limit(&format!("peak memory, {who}"), format!("{mib:.0} MiB"), mib, PEAK_MIB, "MiB");
    }
    Ok(())
}

impl Closures {
    fn named(&self) -> [(&'static str, &Made); 3] {
        [("small files", &self.small), ("large files", &self.large), ("many paths", &self.many)]
    }
}

impl Bench {
    /// Pushes to the cache that is pulled from, by this address of it, with what is known from before.
    fn keep(&mut self, made: &Made, url: &str) -> anyhow::Result<Cost> {
        let cost = call("push", &self.nix, (&self.server, url), &made.root, DEFAULT_LEVEL)?;
        self.peak_kib = self.peak_kib.max(cost.peak_kib);
        Ok(cost)
    }
}

/// A row that says how many times faster we are than they.
fn faster(table: &mut Table, what: &str, ours: &Spent, name: &str, theirs: &Spent, least: Option<f64>) {
    let ratio = theirs.seconds() / ours.seconds();
    table.at_least(what, ours.to_string(), format!("{name} {theirs}"), ratio, least);
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
