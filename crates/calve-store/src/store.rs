//! The store of one user: the Nix store where there is one, and a private store beside it.
//!
//! ```text
//! <root>/<hash>-<name>             a store path's files, read-only
//! <root>/.valid/<hash>-<name>.json its entry in the register, written last
//! <root>/.tmp/                     work in progress, each directory locked by its process
//! <root>/.partial/                 trees whose unpacking was cut off
//! <root>/.lock                     held while paths come and go
//! ```

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_nix::store_path::STORE_DIR;

use crate::StoreError;
use crate::nix_db::NixDb;
use crate::partial::Partials;
use crate::register::Register;
use crate::scratch::{Scratch, remove_tree};

/// Where Nix keeps its database.
const NIX_DB: &str = "/nix/var/nix/db/db.sqlite";

/// Where the parts of Nix are; the default is where every installation has them.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Nix's database; where it does not exist, there is no Nix.
    pub nix_db: PathBuf,
    /// The directory that holds the files of the paths in that database.
    pub nix_store_dir: PathBuf,
    /// The program that is asked where the database cannot be read directly.
    pub nix_store_program: PathBuf,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { nix_db: NIX_DB.into(), nix_store_dir: STORE_DIR.into(), nix_store_program: "nix-store".into() }
    }
}

/// The store paths of this host. All calls block; it may be shared between threads and opened by many processes.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) register: Register,
    pub(crate) nix: NixDb,
    pub(crate) nix_store_dir: PathBuf,
}

/// Held while paths come and go in a private store, by one process at a time.
#[derive(Debug)]
pub(crate) struct RootLock {
    _file: File,
}

impl RootLock {
    /// Waits for the lock on this file, which is made where it does not exist.
    pub fn wait(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        Ok(Self { _file: locked.map_err(StoreError::io("lock", path))? })
    }
}

impl Store {
    /// Opens the private store at `private_root`, making it where it does not exist, beside the host's Nix store.
    /// Leftovers of processes that died are removed.
    pub fn open(private_root: &Path) -> Result<Self, StoreError> {
        Self::open_with(private_root, StoreOptions::default())
    }

    /// Like [`Store::open`], with Nix elsewhere.
    pub fn open_with(private_root: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let valid = private_root.join(".valid");
        for dir in [&valid, &private_root.join(".tmp")] {
            fs::create_dir_all(dir).map_err(StoreError::io("make the directory", dir))?;
        }
        let root = private_root.canonicalize().map_err(StoreError::io("read", private_root))?;
        // Where there is no Nix its directory does not exist either, and nothing is looked up in it.
        let nix_store_dir = options.nix_store_dir.canonicalize().unwrap_or(options.nix_store_dir);
        let store = Self {
            register: Register::new(root.join(".valid")),
            nix: NixDb::new(options.nix_db, options.nix_store_program),
            nix_store_dir,
            root,
        };
        store.remove_leftovers()?;
        Ok(store)
    }

    /// The paths that are valid in the private store, sorted.
    pub fn private_paths(&self) -> Result<Vec<StorePath>, StoreError> {
        self.register.list()
    }

    /// Removes a path from the private store; absence is success. Whether something still needs it is the caller's to
    /// know.
    pub fn remove(&self, path: &StorePath) -> Result<(), StoreError> {
        let lock = self.lock()?;
        let scratch = Scratch::new(&self.tmp(), &lock)?;
        self.register.remove(path)?;
        self.move_away(&self.private_path(path), scratch.path())?;
        drop(lock);
        drop(scratch);
        Ok(())
    }

    /// Where the path's files lie or would lie in the private store.
    pub(crate) fn private_path(&self, path: &StorePath) -> PathBuf {
        self.root.join(path.base_name())
    }

    /// Whether the path is valid in the private store and its files are there. Asking counts as a use of the path: pruning
    /// spares it for its grace.
    pub(crate) fn is_private(&self, path: &StorePath) -> bool {
        self.register.use_path(path) && fs::symlink_metadata(self.private_path(path)).is_ok()
    }

    /// Whether the path is valid in the Nix store and its files are there.
    pub(crate) fn is_in_nix(&self, path: &StorePath) -> Result<bool, StoreError> {
        let files = self.nix_store_dir.join(path.base_name());
        Ok(fs::symlink_metadata(files).is_ok() && self.nix.exists() && self.nix.is_valid(path)?)
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join(".tmp")
    }

    /// Trees of pulls into the private store that were cut off.
    pub(crate) fn partials(&self) -> Partials {
        Partials::new(self.root.join(".partial"))
    }

    /// Waits for the right to change what the private store holds.
    pub(crate) fn lock(&self) -> Result<RootLock, StoreError> {
        RootLock::wait(&self.root.join(".lock"))
    }

    /// Moves a tree out of the private store, to be removed with `scratch`; absence is success.
    pub(crate) fn move_away(&self, tree: &Path, aside: &Path) -> Result<(), StoreError> {
        let Ok(metadata) = fs::symlink_metadata(tree) else { return Ok(()) };
        if metadata.is_dir() {
            // A directory that changes its parent must be writable to who moves it (rename(2)).
            make_writable(tree)?;
        }
        let away = aside.join(tree.file_name().expect("a tree in the store has a name"));
        remove_tree(&away)?;
        fs::rename(tree, &away).map_err(StoreError::io("remove", tree))
    }

    /// Trees come and are registered under one lock: whatever lies there without an entry was cut off.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        let lock = self.lock()?;
        let mut leftovers = Scratch::leftovers(&self.tmp(), &lock)?;
        let partials = self.partials();
        leftovers.iter().for_each(|leftover| partials.take(leftover.path()));
        for entry in fs::read_dir(&self.root).map_err(StoreError::io("read", &self.root))? {
            let name = entry.map_err(StoreError::io("read", &self.root))?.file_name();
            let path = name.to_str().and_then(|name| StorePath::from_base_name(name).ok());
            let Some(path) = path.filter(|path| !self.register.contains(path)) else { continue };
            let scratch = Scratch::new(&self.tmp(), &lock)?;
            self.move_away(&self.private_path(&path), scratch.path())?;
            leftovers.push(scratch);
        }
        // Removing big trees takes time that others need not wait for.
        drop(lock);
        drop(leftovers);
        Ok(())
    }
}

fn make_writable(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(StoreError::io("write to", dir))
}
