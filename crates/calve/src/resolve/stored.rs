//! A place in a store.

use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_store::{InStore, Located};
use calve_wire::machine::{Program, Workload};

use super::entry::{self, Entry};
use super::{Stores, Wish, refused};
use crate::failure::{Failure, Outcome};

/// A place in a store and where it lies on this host.
#[derive(Debug)]
pub struct Place {
    /// Where what was typed enters the store.
    pub entry: InStore,
    /// Where its file or directory lies.
    pub host: PathBuf,
}

/// Runs what lies at the place: a program, or what [`entry::choose`] finds in a whole store path.
pub fn workload(
    place: &Place,
    wish: &Wish,
    main_program: &mut dyn FnMut() -> Option<String>,
) -> Outcome<Workload> {
    let path = &place.entry.path;
    if !place.entry.rest.as_os_str().is_empty() {
        entry::check_executable(&place.host)?;
        return program(&place.entry.full(), wish);
    }
    match entry::choose(&place.host, path.name(), main_program)? {
        Entry::System => Ok(Workload::System { toplevel: path.clone() }),
        Entry::File => program(&place.entry.full(), wish),
        Entry::Bin(name) => program(Path::new(&format!("{path}/bin/{name}")), wish),
    }
}

/// The program at a path inside the store, with the arguments that were typed.
pub fn program(path: &Path, wish: &Wish) -> Outcome<Workload> {
    let path = path.to_str().ok_or_else(|| {
        Failure::usage(format!("{} is not UTF-8, and programs are named in UTF-8", path.display()))
    })?;
    Ok(Workload::Program(bare_program(path.to_owned(), wish.args.clone())))
}

/// A program with nothing but its arguments.
pub fn bare_program(path: String, args: Vec<String>) -> Program {
    Program {
        path,
        args,
        env: Default::default(),
        cwd: None,
        extra_roots: Vec::new(),
        work_tree: None,
        stdin: false,
    }
}

/// The place of a whole store path that `nix` has just made.
pub fn place_of(stores: &Stores, path: &StorePath) -> Outcome<Place> {
    let typed = PathBuf::from(path.to_string());
    match stores.get()?.locate(&typed).map_err(|error| refused(error, &typed))? {
        // The path itself and not what it may link to: its closure is what was built.
        Located::InStore { host_path, .. } => {
            Ok(Place { entry: InStore { path: path.clone(), rest: PathBuf::new() }, host: host_path })
        }
        Located::Outside(_) => Err(Failure::failed(format!("{path} lies in no store"))),
    }
}
