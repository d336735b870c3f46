//! Unpacked paths made valid, in batches, references first.

use std::collections::{BTreeSet, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use calve_nix::StorePath;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::blocking;
use super::plan::{Plan, PlannedPath};
use super::slots::Slots;
use crate::TransferError;
use crate::index::LocalIndex;
use crate::place::Landing;
use crate::progress::Progress;

/// Least time between two landings: each flushes the disk and, for Nix, starts a program. What is lost when the process is
/// killed is the work of about as long.
const LANDING_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Landings {
    pub plan: Arc<Plan>,
    pub landing: Arc<Landing>,
    pub index: Option<Arc<LocalIndex>>,
    pub progress: Arc<Progress>,
    pub slots: Arc<Slots>,
}

impl Landings {
    /// Lands what the workers finish, until they are all gone. After a failure, what is complete still lands.
    pub async fn run(
        self,
        fetch: impl Future<Output = Result<(), TransferError>>,
        mut finished: UnboundedReceiver<(usize, Result<(), TransferError>)>,
    ) -> Result<Vec<StorePath>, TransferError> {
        let mut fetch = pin!(fetch);
        let mut fetching = true;
        let (mut unpacked, mut landed) = (BTreeSet::new(), Vec::new());
        let mut failure: Option<TransferError> = None;
        let mut last = Instant::now();
        loop {
            let finish = tokio::select! {
                result = &mut fetch, if fetching => {
                    fetching = false;
                    if let Err(error) = result {
                        self.stop(&mut failure, error);
                    }
                    continue;
                }
                finish = finished.recv() => Some(finish),
                () = tokio::time::sleep_until(last + LANDING_INTERVAL), if !unpacked.is_empty() => None,
            };
            match finish {
                // It is time to land what there is.
                None => {}
                Some(Some((n, Ok(())))) => drop(unpacked.insert(n)),
                Some(Some((_, Err(error)))) => {
                    self.stop(&mut failure, error);
                    // Nobody needs what is still on its way.
                    fetching = false;
                }
                Some(None) => break,
            }
            if last.elapsed() >= LANDING_INTERVAL && failure.is_none() {
                // Only the calling task's share of fetching waits meanwhile: what was asked for goes on.
                if let Err(error) = self.land(&mut unpacked, &mut landed).await {
                    self.stop(&mut failure, error);
                    fetching = false;
                }
                last = Instant::now();
            }
        }
        let rest = self.land(&mut unpacked, &mut landed).await;
        failure.map_or(rest, Err)?;
        Ok(landed.into_iter().map(|n| self.plan.paths[n].info.path.clone()).collect())
    }

    /// The first failure counts: those of the workers that are stopped by it follow from it.
    fn stop(&self, failure: &mut Option<TransferError>, error: TransferError) {
        let follows = matches!(error, TransferError::Cancelled);
        if failure.as_ref().is_none_or(|before| matches!(before, TransferError::Cancelled) && !follows) {
            *failure = Some(error);
        }
        self.slots.stop();
    }

    /// Lands those of `unpacked` that refer to nothing that is still to come.
    async fn land(
        &self,
        unpacked: &mut BTreeSet<usize>,
        landed: &mut Vec<usize>,
    ) -> Result<(), TransferError> {
        let ready = ready(&self.plan.paths, unpacked, landed);
        if ready.is_empty() {
            return Ok(());
        }
        let (plan, landing, index) = (Arc::clone(&self.plan), Arc::clone(&self.landing), self.index.clone());
        let now = ready.clone();
        blocking(move || {
            let paths: Vec<_> = now.iter().map(|n| &plan.paths[*n]).collect();
            let trees: Vec<_> =
                paths.iter().zip(&now).map(|(path, n)| (&path.info, landing.tree(*n))).collect();
            landing.land(&trees)?;
            if let Some(index) = index {
                let entry = |path: &&'_ PlannedPath| (path.info.path.clone(), path.info.nar_hash);
                let entries: Vec<_> = paths.iter().map(entry).collect();
                let with_recipes = entries.iter().zip(&paths);
                index.record(
                    with_recipes
                        .map(|((path, hash), planned)| (path, hash, planned.recipe_id, &*planned.recipe)),
                )?;
            }
            Ok(())
        })
        .await?;
        self.progress.paths_done.add(ready.len() as u64);
        unpacked.retain(|n| !ready.contains(n));
        landed.extend(ready);
        Ok(())
    }
}

fn ready(paths: &[PlannedPath], unpacked: &BTreeSet<usize>, landed: &[usize]) -> Vec<usize> {
    let planned: HashSet<_> = paths.iter().map(|path| &path.info.path).collect();
    let mut valid: HashSet<_> = landed.iter().map(|n| &paths[*n].info.path).collect();
    let mut ready = Vec::new();
    // References stand first, so that one pass in order finds them all.
    for &n in unpacked {
        let info = &paths[n].info;
        let is_there =
            |path: &StorePath| *path == info.path || !planned.contains(path) || valid.contains(path);
        if info.references.iter().all(is_there) {
            valid.insert(&info.path);
            ready.push(n);
        }
    }
    ready
}
