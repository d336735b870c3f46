//! Where pulled paths go: unpacked aside, then put in place and registered, each after what it refers to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calve_nix::StorePath;
use calve_store_dir::StoreDir;
use rustix::fs::Access;

use crate::add::seal;
use crate::chunk_view::ChunkView;
use crate::nix_place::NixPlace;
use crate::partial::Partials;
use crate::recipe::Recipe;
use crate::register::sync_dir;
use crate::scratch::Scratch;
use crate::{PathInfo, Store, StoreError, TransferError};

/// A store that takes paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// `/nix/store` and Nix's database, for who may write both.
    Nix,
    /// The private store; what Nix has already is used from there.
    Private,
}

impl Store {
    /// Where pulled paths go on this host: into Nix where there is one that this user may write to without a daemon, else
    /// into the private store.
    pub fn destination(&self) -> Destination {
        let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
        let store = &*self.nix_store_dir;
        let nix = self.nix.exists()
            && writable(self.nix.path())
            && StoreDir::open(store).is_ok_and(|dir| writable(&dir.path(store)))
            && self.nix.path().parent().is_some_and(writable)
            && is_found(self.nix.program());
        if nix { Destination::Nix } else { Destination::Private }
    }
}

/// Whether there is such a program, by its path or in a directory of `PATH`.
fn is_found(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

/// A directory in which trees are unpacked, on the file system of the store that they go to.
#[derive(Debug)]
pub(crate) struct Landing {
    store: Arc<Store>,
    nix: Option<NixPlace>,
    scratch: Scratch,
    partials: Partials,
    /// Whether trees are flushed to the disk before they become valid.
    flush: bool,
}

impl Landing {
    /// For trees that go to `destination`.
    pub fn new(store: Arc<Store>, destination: Destination, flush: bool) -> Result<Self, StoreError> {
        let (nix, scratch, partials) = match destination {
            Destination::Nix => {
                let nix = NixPlace::new(&store)?;
                let scratch = nix.scratch()?;
                let partials = nix.partials();
                (Some(nix), scratch, partials)
            }
            Destination::Private => {
                let lock = store.lock()?;
                (None, Scratch::new(&store.tmp(), &lock)?, store.partials())
            }
        };
        Ok(Self { store, nix, scratch, partials, flush })
    }

    /// Which of `paths` need not come, because they are valid where they would go, or where that may refer to.
    pub fn present(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, StoreError> {
        match self.nix {
            Some(_) => self.store.present_in_nix(paths),
            None => self.store.present(paths),
        }
    }

    /// Where the `n`th tree is to be unpacked.
    pub fn tree(&self, n: usize) -> PathBuf {
        self.scratch.path().join(format!("tree-{n}"))
    }

    /// Notes that the `n`th tree is unpacked now, so that what lies there of it is used again where this is cut off.
    pub fn begin(&self, n: usize, info: &PathInfo) {
        Partials::note(&self.tree(n), &info.path, info.nar_size);
    }

    /// What an earlier pull that was cut off left of a path.
    pub fn partial(&self, path: &StorePath, recipe: &Recipe) -> Option<ChunkView> {
        self.partials.open(path, recipe)
    }

    /// A file beside the trees.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes trees valid paths, all of whose references are valid or stand before them.
    pub fn land(&self, trees: &[(&PathInfo, PathBuf)]) -> Result<(), TransferError> {
        match &self.nix {
            Some(nix) => nix.land(&self.store, trees, &self.scratch, self.flush)?,
            None => self.land_privately(trees)?,
        }
        trees.iter().for_each(|(info, _)| self.partials.remove(&info.path));
        Ok(())
    }

    fn land_privately(&self, trees: &[(&PathInfo, PathBuf)]) -> Result<(), StoreError> {
        let store = &self.store;
        let _lock = store.lock()?;
        let paths: Vec<_> = trees.iter().map(|(info, _)| info.path.clone()).collect();
        // Another process may have been faster.
        let present = store.present(&paths)?;
        let mut entries = Vec::with_capacity(trees.len());
        for (info, tree) in trees.iter().filter(|(info, _)| !present.contains(&info.path)) {
            let place = store.private_path(&info.path);
            store.move_away(&place, self.scratch.path())?;
            fs::rename(tree, &place).map_err(StoreError::io("write", &place))?;
            seal_root(&place)?;
            entries.push(*info);
        }
        if self.flush {
            sync_dir(&store.root)?;
        }
        store.register.insert_all(&entries, self.scratch.path(), self.flush)
    }
}

/// Files and links are sealed where they are written, a directory once it is in its place.
pub(crate) fn seal_root(place: &Path) -> Result<(), StoreError> {
    let metadata = fs::symlink_metadata(place).map_err(StoreError::io("read", place))?;
    if metadata.is_dir() { seal(place) } else { Ok(()) }
}
