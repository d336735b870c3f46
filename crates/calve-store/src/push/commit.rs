//! Paths committed once their chunks are in the cache, references first, many at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::sign::fingerprint;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::ahead::Ahead;
use super::{ANSWER_TIMEOUT, PushOptions, Shared};
use crate::pull::blocking;
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{ITEMS_MAX, Manifest};
use crate::retry::retried;
use crate::{PathInfo, TransferError};

/// Least time between two commits, but for the last: each is a round trip.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Paths of one commit: the cache reads the archives of all before it answers.
const COMMIT_PATHS_MAX: usize = 1000;
/// How long a commit may take: the cache puts the archives together and hashes them.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(900);

/// A path that was cut.
pub(super) struct Cut {
    /// Its number, references first.
    pub n: usize,
    pub recipe: Recipe,
    /// Where the cache is told of its archive.
    pub ahead: Option<Ahead>,
}

pub(super) struct Commits {
    shared: Arc<Shared>,
    infos: Vec<PathInfo>,
    options: PushOptions,
    /// Paths that have been cut and not committed.
    cut: BTreeMap<usize, (RecipeId, Arc<Recipe>)>,
    /// Those of them whose archives the cache hashes ahead: to commit one meanwhile would have it hashed twice.
    ahead: HashSet<usize>,
    /// What the cache lacked and lacks no more.
    committed: HashSet<StorePath>,
    lacking: HashSet<StorePath>,
    manifests: Vec<Manifest>,
}

impl Commits {
    pub fn new(shared: Arc<Shared>, infos: Vec<PathInfo>, options: PushOptions) -> Self {
        let lacking = infos.iter().map(|info| info.path.clone()).collect();
        Self {
            shared,
            infos,
            options,
            cut: BTreeMap::new(),
            ahead: HashSet::new(),
            committed: HashSet::new(),
            lacking,
            manifests: Vec::new(),
        }
    }

    /// Commits what is cut, until all is.
    pub async fn run(mut self, mut cut: UnboundedReceiver<Cut>) -> Result<Vec<Manifest>, TransferError> {
        let mut settled = self.shared.settled.subscribe();
        let mut last = Instant::now();
        let mut cutting = true;
        let mut hashing = FuturesUnordered::new();
        while cutting || !self.cut.is_empty() {
            tokio::select! {
                path = cut.recv(), if cutting => match path {
                    Some(Cut { n, recipe, ahead }) => {
                        self.cut.insert(n, (recipe.id(), Arc::new(recipe)));
                        if let Some(ahead) = ahead {
                            self.ahead.insert(n);
                            hashing.push(async move {
                                ahead.end().await;
                                n
                            });
                        }
                    }
                    None => cutting = false,
                },
                Some(n) = hashing.next() => drop(self.ahead.remove(&n)),
                _ = settled.changed() => {}
            }
            let ready = if cutting && last.elapsed() < COMMIT_INTERVAL { Vec::new() } else { self.ready() };
            // At the end one commit for all that is left, rather than one for each that becomes ready.
            if ready.is_empty()
                || !cutting && last.elapsed() < COMMIT_INTERVAL && ready.len() < self.cut.len()
            {
                continue;
            }
            for paths in ready.chunks(COMMIT_PATHS_MAX) {
                self.commit(paths).await?;
            }
            last = Instant::now();
        }
        Ok(self.manifests)
    }

    /// The paths whose chunks are all in the cache, and their references too, or before them in the same list.
    fn ready(&self) -> Vec<usize> {
        let chunks = self.shared.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready = Vec::new();
        let mut before = HashSet::new();
        for (&n, (_, recipe)) in &self.cut {
            let info = &self.infos[n];
            let is_there = |path: &StorePath| {
                *path == info.path
                    || !self.lacking.contains(path)
                    || self.committed.contains(path)
                    || before.contains(path)
            };
            if !self.ahead.contains(&n)
                && info.references.iter().all(is_there)
                && recipe.pieces.iter().all(|piece| chunks.get(&piece.id) == Some(&true))
            {
                before.insert(info.path.clone());
                ready.push(n);
            }
        }
        ready
    }

    async fn commit(&mut self, paths: &[usize]) -> Result<(), TransferError> {
        let manifests: Vec<_> = paths
            .iter()
            .map(|n| Manifest { info: self.signed(&self.infos[*n]), recipe: self.cut[n].0, lazy: None })
            .collect();
        let recipes = self.missing_recipes(paths).await?;
        let shared = &self.shared;
        shared.progress.bytes_moved.add(recipes.iter().map(|recipe| recipe.encode().len() as u64).sum());
        let commit = || shared.remote.commit(manifests.clone(), recipes.clone());
        let answer = retried("a commit", COMMIT_TIMEOUT, &shared.progress, commit).await?;
        self.manifests.extend(answer);
        // Only now: it is the cache that finds out whether an archive has the hash that it should have.
        self.note(paths).await?;
        self.shared.progress.paths_done.add(paths.len() as u64);
        for n in paths {
            self.cut.remove(n);
            self.committed.insert(self.infos[*n].path.clone());
        }
        Ok(())
    }

    /// Notes the paths' recipes in the host's index.
    async fn note(&self, paths: &[usize]) -> Result<(), TransferError> {
        let Some(index) = self.options.index.clone() else { return Ok(()) };
        let entry = |n: &usize| {
            let ((id, recipe), info) = (&self.cut[n], &self.infos[*n]);
            (info.path.clone(), info.nar_hash, *id, Arc::clone(recipe))
        };
        let noted: Vec<_> = paths.iter().map(entry).collect();
        blocking(move || {
            let entries = noted.iter().map(|(path, hash, id, recipe)| (path, hash, *id, &**recipe));
            Ok(index.record(entries)?)
        })
        .await
    }

    /// Those of the paths' recipes that the cache lacks.
    async fn missing_recipes(&self, paths: &[usize]) -> Result<Vec<Recipe>, TransferError> {
        let recipes: HashMap<_, _> = paths.iter().map(|n| (self.cut[n].0, &self.cut[n].1)).collect();
        let ids: Vec<_> = recipes.keys().copied().collect();
        let mut missing = Vec::new();
        for ids in ids.chunks(ITEMS_MAX) {
            let ask = || self.shared.remote.missing_chunks(ids);
            let what = "asking which recipes are missing";
            missing.extend(retried(what, ANSWER_TIMEOUT, &self.shared.progress, ask).await?);
        }
        Ok(missing.iter().filter_map(|id| recipes.get(id)).map(|recipe| Recipe::clone(recipe)).collect())
    }

    fn signed(&self, info: &PathInfo) -> PathInfo {
        let mut info = info.clone();
        if let Some(key) = &self.options.key {
            let references = info.references.iter().cloned().collect();
            let fingerprint = fingerprint(&info.path, &info.nar_hash, info.nar_size, &references);
            let signature = key.sign(&fingerprint).to_string();
            if !info.signatures.contains(&signature) {
                info.signatures.push(signature);
            }
        }
        info
    }
}
