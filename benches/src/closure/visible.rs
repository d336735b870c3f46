//! A closure that lies in the store, made visible to a sandbox and to a guest without being copied.

use std::time::Instant;

use calve_store::ClosurePath;

use super::make::Made;
use super::nix::{self, NixRoot};
use super::{Bench, call};
use crate::start::Ours;
use crate::store::Store;
use crate::table::Table;
use crate::times::{Times, millis};

/// Most that it may take, in milliseconds.
const VISIBLE_MOST_MS: f64 = 50.0;
/// Machines of each kind.
const STARTS: usize = 9;

impl Bench {
    pub(super) async fn visible(&mut self, made: &Made, table: &mut Table) -> anyhow::Result<()> {
        let target = NixRoot::new()?;
        call("pull", &target, (&self.server, &self.server.url), &made.root, 0)?;
        let program = Store::new(1);
        let bare = || program.order();
        let whole = || {
            let mut order = program.order();
            let path = |path: &calve_nix::StorePath| ClosurePath {
                path: path.clone(),
                host_path: target.host_path(path),
            };
            order.closure.paths.extend(made.paths().iter().map(path));
            order
        };
        let mut driver = Ours::new()?;
        let (mut without, mut with) = (Times::new(), Times::new());
        for _ in 0..STARTS {
            without.push(driver.run_order(bare(), &program.program()).await);
            with.push(driver.run_order(whole(), &program.program()).await);
        }
        let (with, without) = (with.median(), without.median());
        let more = with.saturating_sub(without).as_secs_f64() * 1000.0;
        let shown = format!("{} − {}", millis(with), millis(without));
        let what = format!("{} paths seen by a sandbox, beyond a start without", self.size.paths);
        table.limit(&what, shown, more, VISIBLE_MOST_MS, "ms");
        let images = tempfile::tempdir()?;
        let (store, closure) = (nix::open(target.dir())?, whole().closure);
        let make = || -> anyhow::Result<_> {
            let begun = Instant::now();
            store.image(&closure, images.path())?;
            Ok(begun.elapsed())
        };
        table.note(&format!("{} paths as an image for guests, made once", self.size.paths), millis(make()?));
        let again = make()?;
        let what = format!("{} paths for a guest, image from before", self.size.paths);
        table.limit(&what, millis(again), again.as_secs_f64() * 1000.0, VISIBLE_MOST_MS, "ms");
        Ok(())
    }
}
