//! Trees whose unpacking was cut off: the next pull of the same path reads what lies in them instead of fetching it again.
//!
//! ```text
//! .tmp/<random>/tree-3, tree-3.path ─▶ the process dies ─▶ partial/<hash>-<name> ─▶ read chunk by chunk ─▶ gone
//! ```
//! Nothing in them is trusted: each chunk is hashed again.

use std::fs::{self, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calve_nix::StorePath;
use calve_tree::NarView;

use crate::chunk_view::ChunkView;
use crate::recipe::Recipe;
use crate::scratch::remove_tree;

/// Archives below this size are not worth a note: they come again in a second.
const MIN_BYTES: u64 = 1 << 20;
/// How long a tree waits for the pull that goes on with it.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// What the name of a note ends with; it holds the base name of the path whose tree lies beside it.
const NOTE: &str = ".path";

/// The directory of such trees. Whatever fails here only costs time: nobody is told.
#[derive(Debug, Clone)]
pub(crate) struct Partials(PathBuf);

impl Partials {
    /// Those in this directory, which need not be there.
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Notes what the tree at `tree` will be, before it is unpacked.
    pub fn note(tree: &Path, path: &StorePath, nar_size: u64) {
        if nar_size >= MIN_BYTES {
            let _ = fs::write(note_of(tree), path.base_name());
        }
    }

    /// Takes over the noted trees in the directory of a process that died, on the same file system, and drops old ones.
    pub fn take(&self, dir: &Path) {
        self.drop_old();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let note = entry.path();
            let Some(tree) = note.to_str().and_then(|note| note.strip_suffix(NOTE)).map(Path::new) else {
                continue;
            };
            let path = fs::read_to_string(&note).ok().and_then(|name| StorePath::from_base_name(&name).ok());
            if let Some(path) = path.filter(|_| fs::symlink_metadata(tree).is_ok()) {
                self.take_tree(tree, &path);
            }
        }
    }

    fn take_tree(&self, tree: &Path, path: &StorePath) {
        let place = self.0.join(path.base_name());
        let size = |tree: &Path| NarView::open(tree).ok().flatten().map_or(0, |view| view.size());
        // One that was cut off again, earlier than before.
        if size(&place) >= size(tree) || fs::create_dir_all(&self.0).is_err() || remove_tree(&place).is_err()
        {
            return;
        }
        if fs::rename(tree, &place).is_ok() {
            let now = FileTimes::new().set_modified(SystemTime::now());
            let _ = fs::File::open(&place).and_then(|tree| tree.set_times(now));
        }
    }

    fn drop_old(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            if made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > KEPT_FOR)) {
                let _ = remove_tree(&entry.path());
            }
        }
    }

    /// What lies here of a path with this recipe.
    pub fn open(&self, path: &StorePath, recipe: &Recipe) -> Option<ChunkView> {
        let place = self.0.join(path.base_name());
        fs::symlink_metadata(&place).ok()?;
        ChunkView::open_part(&place, recipe).ok().flatten()
    }

    /// The path is there now.
    pub fn remove(&self, path: &StorePath) {
        let _ = remove_tree(&self.0.join(path.base_name()));
    }
}

fn note_of(tree: &Path) -> PathBuf {
    let mut note = tree.as_os_str().to_owned();
    note.push(NOTE);
    note.into()
}
