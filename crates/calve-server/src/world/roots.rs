//! Roots for Nix's garbage collector: while a machine lives, its closure stays in the Nix store.
//!
//! ```text
//!  <data>/roots/<machine id>-<n>                ─▶ /nix/store/<hash>-<name>    the root
//!  /nix/var/nix/gcroots/auto/calve-<machine id>-<n> ─▶ the link above          says that it is one
//! ```
//! Indirect roots, as `nix-build` makes them for `./result`: once the first link is gone, the second holds nothing and Nix
//! removes it. Who may not write to Nix's directory has `nix-store` ask its daemon for the second link. Paths of the private
//! store need no roots, as Nix knows nothing of them, but what they refer to in the Nix store does.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use calve_core::MachineId;
use calve_nix::StorePath;
use calve_nix::store_path::STORE_DIR;
use calve_node::Order;
use calve_store::{Closure, Store, StoreError};
use calve_wire::machine::StoreDelivery;

use super::roots as roots_of;
use crate::chain;

/// Where Nix looks for links to roots that lie elsewhere.
const NIX_AUTO_ROOTS: &str = "/nix/var/nix/gcroots/auto";
/// How long `nix-store` may take to make a root: milliseconds, and longer while a collection holds Nix's lock.
const NIX_STORE_MAX: Duration = Duration::from_secs(60);

/// The roots of all machines.
#[derive(Debug)]
pub struct GcRoots {
    /// The directory of the links.
    dir: PathBuf,
}

impl GcRoots {
    /// Roots by way of links in `dir`, which is made when the first is needed.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Holds what the machine runs until [`Self::release`]. Repeated, it changes nothing. A machine whose closure cannot be
    /// held runs all the same: the log says that a garbage collection would end it.
    pub(super) async fn hold(&self, order: &Order, store: &Arc<Store>) {
        if !order.closure.paths.iter().any(|path| is_in_nix(&path.host_path)) {
            return;
        }
        let mut paths = roots_of(&order.spec);
        if order.spec.store == Some(StoreDelivery::Lazy) {
            // Its private paths are in no store yet that could say what they refer to.
            paths.extend(order.closure.paths.iter().map(|path| path.path.clone()));
            return self.hold_all(order, paths).await;
        }
        match private_references(&order.closure, store).await {
            Ok(references) => paths.extend(references),
            Err(error) => {
                tracing::warn!(machine = %order.id, error = chain(&error), "references into Nix are not known");
            }
        }
        self.hold_all(order, paths).await;
    }

    async fn hold_all(&self, order: &Order, paths: Vec<StorePath>) {
        let places = paths.iter().filter_map(|path| order.closure.host_path_of(path));
        let in_nix: BTreeSet<_> = places.filter(|place| is_in_nix(place)).collect();
        for (n, path) in in_nix.into_iter().enumerate() {
            let name = format!("{}-{n}", order.id);
            if let Err(error) = self.hold_path(&name, path).await {
                tracing::warn!(
                    machine = %order.id,
                    path = %path.display(),
                    error = chain(&error),
                    "the machine's closure is not kept from Nix's garbage collector"
                );
            }
        }
    }

    async fn hold_path(&self, name: &str, path: &Path) -> io::Result<()> {
        let link = self.dir.join(name);
        match std::fs::create_dir(&self.dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        link_to(path, &link)?;
        match link_to(&link, &auto_root(name)) {
            Err(error) if may_not_write(&error) => ask_nix(&link, path).await,
            result => result,
        }
    }

    /// Lets go of what the machine ran. Absence is success.
    pub(super) async fn release(&self, id: MachineId) {
        for n in 0.. {
            let name = format!("{id}-{n}");
            match self.release_root(&name) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(machine = %id, %error, "a store path is held on");
                    return;
                }
            }
        }
    }

    /// Lets go of what machines other than these ran.
    pub(super) async fn reap(&self, living: BTreeSet<MachineId>) {
        let Ok(links) = std::fs::read_dir(&self.dir) else { return };
        for link in links.flatten() {
            let name = link.file_name();
            let Some(name) = name.to_str() else { continue };
            let id = name.rsplit_once('-').and_then(|(id, _)| id.parse::<MachineId>().ok());
            if id.is_some_and(|id| !living.contains(&id))
                && let Err(error) = self.release_root(name)
            {
                tracing::warn!(root = name, %error, "a store path is held on");
            }
        }
    }

    /// Removes a root; whether it was there.
    fn release_root(&self, name: &str) -> io::Result<bool> {
        // This link is the one that counts; the other is Nix's to tidy up where this user may not.
        match std::fs::remove_file(self.dir.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        let _ = std::fs::remove_file(auto_root(name));
        Ok(true)
    }
}

fn is_in_nix(place: &Path) -> bool {
    place.starts_with(STORE_DIR)
}

/// What the private paths of a closure refer to: a path that came from a cache may refer to one that Nix had already, and
/// Nix does not know of it.
async fn private_references(closure: &Closure, store: &Arc<Store>) -> Result<Vec<StorePath>, StoreError> {
    let private = closure.paths.iter().filter(|path| !is_in_nix(&path.host_path)).cloned().collect();
    let (private, store) = (Closure::new(private), store.clone());
    if private.paths.is_empty() {
        return Ok(Vec::new());
    }
    let asking = tokio::task::spawn_blocking(move || {
        let infos = store.path_infos(&private)?;
        Ok(infos.into_iter().flat_map(|info| info.references).collect())
    });
    asking.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn auto_root(name: &str) -> PathBuf {
    Path::new(NIX_AUTO_ROOTS).join(format!("calve-{name}"))
}

fn may_not_write(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound)
}

/// Makes `link` lead to `target`, whatever it was before.
fn link_to(target: &Path, link: &Path) -> io::Result<()> {
    match symlink(target, link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if std::fs::read_link(link).is_ok_and(|found| found == target) {
                return Ok(());
            }
            std::fs::remove_file(link)?;
            symlink(target, link)
        }
        result => result,
    }
}

/// Has Nix's daemon take `link` for a root of `path` (nix-store(1), `--add-root`).
async fn ask_nix(link: &Path, path: &Path) -> io::Result<()> {
    let mut command = tokio::process::Command::new("nix-store");
    command.arg("--add-root").arg(link).args(["--indirect", "--realise"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(NIX_STORE_MAX, command.output()).await;
    let output = output.map_err(|_| io::Error::new(ErrorKind::TimedOut, "nix-store does not answer"))??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nix-store: {}", said.lines().last().unwrap_or("no word"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_core::Timestamp;

    #[tokio::test]
    async fn a_root_goes_with_its_machine_and_leftovers_with_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let roots = GcRoots::new(dir.path().join("roots"));
        std::fs::create_dir(&roots.dir).unwrap();
        let ids = [1, 2, 3].map(|n| MachineId::new(Timestamp(1), n));
        for id in ids {
            for n in 0..2 {
                link_to(Path::new("/nix/store/x"), &roots.dir.join(format!("{id}-{n}"))).unwrap();
            }
        }
        let left = || std::fs::read_dir(&roots.dir).unwrap().count();
        roots.release(ids[0]).await;
        roots.release(ids[0]).await;
        assert_eq!(left(), 4);
        roots.reap(BTreeSet::from([ids[2]])).await;
        assert_eq!(left(), 2);
    }

    #[test]
    fn a_link_is_made_once_and_corrected() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        for target in ["/a", "/a", "/b"] {
            link_to(Path::new(target), &link).unwrap();
            assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(target));
        }
    }
}
