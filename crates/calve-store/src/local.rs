//! What the local store knows of its valid paths.

use std::collections::BTreeSet;
use std::fs;

use calve_nix::StorePath;

use crate::{Closure, PathInfo, Store, StoreError};

impl Store {
    /// What is known of the paths of a closure, in its order: their hashes, sizes, references, derivers, content addresses
    /// and signatures. Where the Nix database can only be asked through `nix-store`, the last two are not known.
    pub fn path_infos(&self, closure: &Closure) -> Result<Vec<PathInfo>, StoreError> {
        let private = |path: &StorePath| self.is_private(path).then(|| self.register.get(path)).transpose();
        let infos: Result<Vec<_>, StoreError> =
            closure.paths.iter().map(|at| Ok(private(&at.path)?.flatten())).collect();
        let mut infos = infos?;
        let in_nix: Vec<_> = closure.paths.iter().zip(&infos).filter(|(_, info)| info.is_none()).collect();
        let in_nix: Vec<_> = in_nix.into_iter().map(|(at, _)| at.path.clone()).collect();
        let mut of_nix = if in_nix.is_empty() { Vec::new() } else { self.nix.infos(&in_nix)? };
        of_nix.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for (at, info) in closure.paths.iter().zip(&mut infos).filter(|(_, info)| info.is_none()) {
            let found = of_nix.binary_search_by(|info| info.path.cmp(&at.path));
            let n = found.map_err(|_| StoreError::Unknown { path: at.path.clone() })?;
            *info = Some(of_nix[n].clone());
        }
        Ok(infos.into_iter().flatten().collect())
    }

    /// Which of `paths` are valid here, in the private store or in Nix, with their files.
    pub fn present(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, StoreError> {
        let (present, rest): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| self.is_private(path));
        let mut present: BTreeSet<_> = present.into_iter().collect();
        present.extend(self.present_in_nix(&rest)?);
        Ok(present)
    }

    /// Which of `paths` are valid in Nix, with their files.
    pub(crate) fn present_in_nix(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, StoreError> {
        let on_disk =
            |path: &&StorePath| fs::symlink_metadata(self.nix_store_dir.join(path.base_name())).is_ok();
        let candidates: Vec<_> = paths.iter().filter(on_disk).cloned().collect();
        if candidates.is_empty() || !self.nix.exists() {
            return Ok(BTreeSet::new());
        }
        self.nix.valid_among(&candidates)
    }
}
