//! A plain file or directory of this host, added to the store under the path that `nix-store --add` gives it.

use std::path::{Path, PathBuf};

use calve_store::Located;
use calve_wire::machine::Workload;

use super::entry::{self, Entry};
use super::measure::{self, Limit};
use super::stored::{self, Place as Stored};
use super::{Stores, Wish, refused};
use crate::failure::{Failure, Outcome};
use crate::ui::Progress;

/// Most bytes of a program's tree: more is a mistake, such as a home directory with a `bin` in it.
const TREE_LIMIT: Limit = Limit { bytes: 8 << 30, files: 500_000 };

/// Directories whose `bin` is no program's own: what lies beside it belongs to everything.
const SHARED_ROOTS: [&str; 4] = ["/", "/usr", "/usr/local", "/opt"];

/// Where a path leads.
pub enum Place {
    /// Into a store.
    Stored(Stored),
    /// To this file or directory outside of every store.
    Outside(PathBuf),
}

/// Finds out where the path leads.
pub fn locate(stores: &Stores, path: &Path) -> Outcome<Place> {
    match stores.get()?.locate(path).map_err(|error| refused(error, path))? {
        Located::InStore { entry, host_path, .. } => Ok(Place::Stored(Stored { entry, host: host_path })),
        Located::Outside(file) => Ok(Place::Outside(file)),
    }
}

/// Adds what lies at `typed` to the store and runs it. `file` is where its links lead.
pub fn workload(stores: &Stores, file: &Path, typed: &Path, wish: &Wish) -> Outcome<Workload> {
    if file.is_dir() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let chosen = entry::choose(file, &name, &mut || None)?;
        let path = add(stores, file, typed)?;
        return match chosen {
            Entry::System => Ok(Workload::System { toplevel: path }),
            Entry::Bin(name) => stored::program(Path::new(&format!("{path}/bin/{name}")), wish),
            Entry::File => stored::program(Path::new(&path.to_string()), wish),
        };
    }
    entry::check_executable(file)?;
    match tree_of(typed, std::env::var_os("HOME").map(PathBuf::from).as_deref()) {
        Some((root, rest)) => {
            let path = add(stores, &root, typed)?;
            stored::program(&Path::new(&path.to_string()).join(rest), wish)
        }
        None => {
            let path = add(stores, file, typed)?;
            stored::program(Path::new(&path.to_string()), wish)
        }
    }
}

/// The tree that a program needs: for `dir/bin/app` it is `dir`, because programs find their files beside `bin`; anything
/// else is a lone file. The last link is not followed: a program may act by the name that it is called by.
fn tree_of(typed: &Path, home: Option<&Path>) -> Option<(PathBuf, PathBuf)> {
    let name = typed.file_name()?;
    let parent = match typed.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent?,
    };
    let bin = parent.canonicalize().ok()?;
    if bin.file_name()? != "bin" {
        return None;
    }
    let root = bin.parent()?.to_owned();
    let shared = SHARED_ROOTS.iter().any(|shared| root == Path::new(shared));
    // `~`, `~/.local`, `~/.cargo`: places where many programs are installed.
    let homes = home.is_some_and(|home| {
        let hidden = root.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        root == home || (hidden && root.parent() == Some(home))
    });
    (!shared && !homes).then(|| (root, Path::new("bin").join(name)))
}

/// Adds a tree to the store.
pub fn add(stores: &Stores, root: &Path, typed: &Path) -> Outcome<calve_nix::StorePath> {
    let progress = Progress::new(&format!("adding {} to the store", root.display()));
    measure::check(root, TREE_LIMIT).map_err(|failure: Failure| {
        failure.hint("for dir/bin/app all of dir is added; put the program into a directory of its own")
    })?;
    let path = stores.get()?.add(root, None).map_err(|error| refused(error, typed));
    drop(progress);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_a_bin_takes_the_tree_along_and_others_go_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for part in ["app/bin", "home/.local/bin", "home/bin"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let tree = |path: &str| tree_of(&dir.join(path), Some(&dir.join("home")));
        assert_eq!(tree("app/bin/x"), Some((dir.join("app"), PathBuf::from("bin/x"))));
        assert_eq!(tree("app/x"), None);
        assert_eq!(tree("home/.local/bin/x"), None);
        assert_eq!(tree("home/bin/x"), None);
        assert_eq!(tree_of(Path::new("/bin/sh"), None), None);
        assert_eq!(tree_of(Path::new("/usr/bin/env"), None), None);
    }
}
