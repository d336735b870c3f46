//! The closure of store paths, over the private store and Nix's database alike.

use std::collections::BTreeSet;
use std::fs;

use calve_nix::StorePath;

use crate::{Closure, ClosurePath, Store, StoreError};

/// The private half of a closure.
#[derive(Default)]
struct Private {
    /// Its paths.
    paths: BTreeSet<StorePath>,
    /// What they refer to outside the private store, each with one that refers to it.
    references: Vec<(StorePath, StorePath)>,
}

impl Store {
    /// `roots` with everything that they refer to, directly or not. Every path of it is valid and its files are there.
    ///
    /// Errors tell apart a root that nobody calls valid ([`StoreError::Unknown`]), a root without files
    /// ([`StoreError::MissingOnDisk`]), and a reference that is not there ([`StoreError::Incomplete`]).
    pub fn closure(&self, roots: &[StorePath]) -> Result<Closure, StoreError> {
        let (private_roots, nix_roots): (Vec<_>, Vec<_>) =
            roots.iter().cloned().partition(|root| self.is_private(root));
        let private = self.private_requisites(private_roots)?;
        // Nix's paths refer to Nix's paths alone, so that its half follows from one query.
        let wanted: BTreeSet<_> = nix_roots
            .iter()
            .chain(private.references.iter().map(|(_, reference)| reference))
            .cloned()
            .collect();
        let nix = self.nix_requisites(&wanted)?;
        if let Some(root) = nix_roots.iter().find(|root| !nix.contains(root)) {
            let path = root.clone();
            if self.register.contains(&path) {
                return Err(StoreError::MissingOnDisk { host_path: self.private_path(&path), path });
            }
            return Err(StoreError::Unknown { path });
        }
        if let Some((path, missing)) = private.references.iter().find(|(_, missing)| !nix.contains(missing)) {
            return Err(StoreError::Incomplete { path: path.clone(), missing: missing.to_string() });
        }
        self.on_disk(roots, private, nix)
    }

    fn private_requisites(&self, mut queue: Vec<StorePath>) -> Result<Private, StoreError> {
        let mut private = Private::default();
        while let Some(path) = queue.pop() {
            if private.paths.contains(&path) {
                continue;
            }
            let Some(entry) = self.register.get(&path)? else {
                return Err(StoreError::Unknown { path });
            };
            for reference in entry.references {
                if self.is_private(&reference) {
                    queue.push(reference);
                } else {
                    private.references.push((path.clone(), reference));
                }
            }
            private.paths.insert(path);
        }
        Ok(private)
    }

    fn nix_requisites(&self, wanted: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, StoreError> {
        if wanted.is_empty() || !self.nix.exists() {
            return Ok(BTreeSet::new());
        }
        let wanted: Vec<_> = wanted.iter().cloned().collect();
        let requisites = self.nix.requisites(&wanted)?;
        match requisites.broken.into_iter().next() {
            Some(path) => {
                Err(StoreError::Incomplete { path, missing: "a path that Nix no longer knows".to_owned() })
            }
            None => Ok(requisites.paths.into_iter().collect()),
        }
    }

    fn on_disk(
        &self,
        roots: &[StorePath],
        private: Private,
        nix: BTreeSet<StorePath>,
    ) -> Result<Closure, StoreError> {
        let mut paths = Vec::with_capacity(private.paths.len() + nix.len());
        for path in &private.paths {
            paths.push(ClosurePath { path: path.clone(), host_path: self.private_path(path) });
        }
        for path in &nix {
            paths.push(ClosurePath {
                path: path.clone(),
                host_path: self.nix_store_dir.join(path.base_name()),
            });
        }
        for ClosurePath { path, host_path } in &paths {
            if fs::symlink_metadata(host_path).is_ok() {
                continue;
            }
            let (path, host_path) = (path.clone(), host_path.clone());
            if roots.contains(&path) {
                return Err(StoreError::MissingOnDisk { path, host_path });
            }
            let referrer = match private.references.iter().find(|(_, reference)| *reference == path) {
                Some((referrer, _)) => Some(referrer.clone()),
                None => self.nix.referrer(&path, &nix)?,
            };
            return Err(match referrer {
                Some(referrer) => StoreError::Incomplete { path: referrer, missing: path.to_string() },
                None => StoreError::MissingOnDisk { path, host_path },
            });
        }
        Ok(Closure::new(paths))
    }
}
