//! What goes from the private store: paths that nothing needs and nobody has used for a while.
//!
//! ```text
//! keep ∪ used within the grace ─▶ with all that they refer to: stay
//! the rest, what refers before what is referred to ─▶ entry taken away, looked at once more ─▶ files
//! ```
//! A path is used when somebody asks whether it is valid: who adds, pulls, or makes a machine does that first, and has the
//! grace's time to hold the path in another way. A use beside a pruning is noted in time or finds the path gone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use calve_nix::StorePath;

use crate::scratch::Scratch;
use crate::{Store, StoreError};

/// How long a path stays after its last use where nothing else is said: the morning after, what was shipped in the evening
/// is still there.
pub const UNUSED_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The shortest such time: between a path's use and the record of the machine that needs it lie a transfer and some work.
pub const UNUSED_MIN: Duration = Duration::from_secs(3600);
const _: () = assert!(UNUSED_MIN.as_secs() > 2 * crate::register::USE_NOTED_EVERY.as_secs());

/// What a pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedPaths {
    /// The paths, what refers to others before these.
    pub paths: Vec<StorePath>,
    /// The size of their archives in bytes: about what they took.
    pub bytes: u64,
}

/// The references of all private paths.
type References = HashMap<StorePath, Vec<StorePath>>;

impl Store {
    /// Removes the paths of the private store that neither one of `keep` nor a path used within `unused_for` (at least
    /// [`UNUSED_MIN`]) needs. Safe beside everything else that happens in the store.
    pub fn prune(&self, keep: &[StorePath], unused_for: Duration) -> Result<PrunedPaths, StoreError> {
        let since =
            SystemTime::now().checked_sub(unused_for.max(UNUSED_MIN)).unwrap_or(SystemTime::UNIX_EPOCH);
        let lock = self.lock()?;
        let mut references = References::new();
        let mut sizes = HashMap::new();
        for path in self.register.list()? {
            let Some(entry) = self.register.get(&path)? else { continue };
            sizes.insert(path.clone(), entry.nar_size);
            references.insert(path, entry.references);
        }
        let mut live = HashSet::new();
        let used = |path: &&StorePath| self.register.used(path).is_some_and(|used| used >= since);
        let used: Vec<_> = references.keys().filter(used).cloned().collect();
        mark(&references, keep.iter().chain(&used), &mut live);
        let dead: Vec<_> =
            referrers_first(&references).into_iter().filter(|path| !live.contains(path)).collect();
        let scratch = Scratch::new(&self.tmp(), &lock)?;
        let aside = scratch.path().join("entry");
        let mut pruned = PrunedPaths::default();
        for path in dead {
            if live.contains(&path) {
                continue;
            }
            if self.register.take_unused(&path, since, &aside)? {
                self.move_away(&self.private_path(&path), scratch.path())?;
                pruned.bytes += sizes.get(&path).copied().unwrap_or_default();
                pruned.paths.push(path);
            } else {
                mark(&references, [&path], &mut live);
            }
        }
        // Removing big trees takes time that others need not wait for.
        drop(lock);
        drop(scratch);
        Ok(pruned)
    }
}

/// Adds `roots` with all that they refer to.
fn mark<'a>(
    references: &'a References,
    roots: impl IntoIterator<Item = &'a StorePath>,
    live: &mut HashSet<StorePath>,
) {
    let mut open: Vec<_> = roots.into_iter().collect();
    while let Some(path) = open.pop() {
        if live.insert(path.clone()) {
            open.extend(references.get(path).into_iter().flatten());
        }
    }
}

/// All paths, each before those that it refers to. Paths refer to themselves, and to nothing else in a circle.
fn referrers_first(references: &References) -> Vec<StorePath> {
    let mut waiting: HashMap<&StorePath, usize> = references.keys().map(|path| (path, 0)).collect();
    for (path, targets) in references {
        for target in targets.iter().filter(|target| *target != path) {
            if let Some(count) = waiting.get_mut(target) {
                *count += 1;
            }
        }
    }
    let mut ready: Vec<_> = waiting.iter().filter(|(_, count)| **count == 0).map(|(path, _)| *path).collect();
    let mut order = Vec::with_capacity(references.len());
    while let Some(path) = ready.pop() {
        order.push(path.clone());
        for target in references[path].iter().filter(|target| *target != path) {
            if let Some((target, count)) =
                waiting.get_key_value(target).map(|(target, count)| (*target, *count))
            {
                waiting.insert(target, count - 1);
                if count == 1 {
                    ready.push(target);
                }
            }
        }
    }
    order
}
