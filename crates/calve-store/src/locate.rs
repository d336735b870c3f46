//! What a user typed, as a place in a store.

use std::fmt;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_nix::store_path::STORE_DIR;

pub use crate::resolve::LINKS_MAX;
use crate::resolve::{End, Inside, ResolveError, World, resolve};
use crate::{Store, StoreError};

/// A place inside a store path, under its logical name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InStore {
    /// The store path.
    pub path: StorePath,
    /// What follows it: empty, or like `/bin/hello`.
    pub rest: PathBuf,
}

impl InStore {
    /// The whole path: `/nix/store/<hash>-<name>/bin/hello`.
    pub fn full(&self) -> PathBuf {
        let mut full = self.path.to_string();
        match self.rest.to_str() {
            Some(rest) => {
                full.push_str(rest);
                full.into()
            }
            None => Path::new(&full).join(self.rest.strip_prefix("/").unwrap_or(&self.rest)),
        }
    }
}

impl fmt::Display for InStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.full().display().fmt(f)
    }
}

/// Where a path that a user typed leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// Into a store.
    InStore {
        /// Where it enters the store: `./result/bin/ls` is `/bin/ls` in the path that `result` points to. This is what
        /// is to be run, under the closure of its path: a program may act by the name that it is called by.
        entry: InStore,
        /// The file or directory itself, after all links inside the store; maybe in another store path.
        target: InStore,
        /// Where that lies on this host.
        host_path: PathBuf,
    },
    /// To this file or directory, which lies in no store.
    Outside(PathBuf),
}

impl Store {
    /// Finds out where `path`, relative to the working directory, leads. Files must be there; whether store paths are
    /// valid is not asked.
    pub fn locate(&self, path: &Path) -> Result<Located, StoreError> {
        let absolute = std::path::absolute(path).map_err(StoreError::io("find", path))?;
        let world = World {
            store_dirs: &[&self.nix_store_dir, &self.root],
            host_path_of: &|store_path| self.host_path_of(store_path),
            has_outside: true,
        };
        let resolved = resolve(&absolute, &world).map_err(|error| locate_error(error, path))?;
        match (resolved.end, resolved.entry) {
            (End::Inside(target, host_path), entry) => {
                let target = InStore::from(target);
                let entry = entry.map_or_else(|| target.clone(), InStore::from);
                Ok(Located::InStore { entry, target, host_path })
            }
            (End::Outside(target), Some(entry)) => {
                Err(StoreError::LeadsOut { path: InStore::from(entry).full(), target })
            }
            (End::Outside(path), None) => Ok(Located::Outside(path)),
        }
    }

    /// Where the files of a store path lie, wherever they are; whether it is valid is not asked.
    pub fn host_path_of(&self, path: &StorePath) -> Option<PathBuf> {
        let places = [self.private_path(path), self.nix_store_dir.join(path.base_name())];
        places.into_iter().find(|place| place.symlink_metadata().is_ok())
    }
}

impl From<Inside> for InStore {
    fn from(inside: Inside) -> Self {
        let mut rest = PathBuf::new();
        if !inside.names.is_empty() {
            rest.push("/");
            rest.extend(inside.names);
        }
        Self { path: inside.path, rest }
    }
}

fn locate_error(error: ResolveError, path: &Path) -> StoreError {
    match error {
        ResolveError::NotHeld(path) => StoreError::Unknown { path },
        ResolveError::Io(at, source) => StoreError::Io { action: "find", path: at, source },
        ResolveError::TooManyLinks => StoreError::TooManyLinks { path: path.to_owned() },
        ResolveError::LeadsOut(target) => StoreError::LeadsOut { path: path.to_owned(), target },
    }
}

/// The logical name of a place.
pub fn logical(inside: &Inside) -> PathBuf {
    let mut path = Path::new(STORE_DIR).join(inside.path.base_name());
    path.extend(&inside.names);
    path
}
