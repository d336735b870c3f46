//! From what the user typed to what a machine runs: one file for each form.

mod attr;
mod entry;
mod flake;
mod form;
mod local;
mod measure;
mod nix;
mod root;
mod shell;
mod stored;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_store::{InStore, ProgramError, Store, StoreError};
use calve_wire::machine::{Program, Source, Workload};

use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};
use form::Form;

pub use root::root;

/// What the user typed.
#[derive(Debug, Default)]
pub struct Wish {
    /// A path, a flake reference or a Nix file; nothing for the base guest or for `default.nix` with `attr`.
    pub what: Option<String>,
    /// The attribute to build.
    pub attr: Option<String>,
    /// Whether `args` are a command in the environment of a Nix shell.
    pub shell: bool,
    /// The program's arguments.
    pub args: Vec<String>,
}

/// What a machine shall run, and where it came from.
#[derive(Debug)]
pub struct Resolved {
    /// What runs; a program's environment holds only what came out of a Nix shell.
    pub workload: Workload,
    /// Where it came from.
    pub source: Source,
}

/// Finds out what is meant, and builds it or adds it to the store where it is not there yet. Blocks while `nix` builds.
pub fn resolve(wish: &Wish) -> Outcome<Resolved> {
    let form = form::classify(wish)?;
    let stores = Stores::default();
    let mut revision = None;
    let workload = match form {
        Form::Base => Workload::Base,
        Form::Path(path) => match local::locate(&stores, &path)? {
            local::Place::Stored(place) => stored::workload(&place, wish, &mut || None)?,
            local::Place::Outside(file) => local::workload(&stores, &file, &path, wish)?,
        },
        Form::Attr { file, attr } => attr::workload(&stores, &file, attr.as_deref(), wish)?,
        Form::Flake(reference) => flake::workload(&stores, &reference, wish, &mut revision)?,
        Form::ShellFile { file, attr } => shell::from_file(&stores, &file, attr.as_deref(), wish)?,
        Form::ShellFlake(reference) => shell::from_flake(&stores, &reference, wish, &mut revision)?,
    };
    if matches!(workload, Workload::System { .. } | Workload::Base) && !wish.args.is_empty() {
        return Err(Failure::usage("a system takes no arguments")
            .hint("run it with -d, then `calve exec NAME -- COMMAND`"));
    }
    Ok(Resolved { workload, source: Source { given: given(wish), revision } })
}

/// What runs in a path that is served from elsewhere: its files lie at `host`, and `rest` is what was typed behind it.
pub fn served(wish: &Wish, path: &StorePath, rest: &str, host: &Path) -> Outcome<Resolved> {
    let rest = rest.trim_matches('/');
    let workload = match rest.is_empty() {
        // What it links to in other paths, the server looks at.
        false => stored::program(&Path::new(&path.to_string()).join(rest), wish)?,
        true => {
            let entry = InStore { path: path.clone(), rest: PathBuf::new() };
            stored::workload(&stored::Place { entry, host: host.to_owned() }, wish, &mut || None)?
        }
    };
    Ok(Resolved { workload, source: Source { given: given(wish), revision: None } })
}

/// What the user typed, as one line.
fn given(wish: &Wish) -> String {
    let shell = wish.shell.then_some("--shell");
    let attr = wish.attr.as_ref().map(|attr| format!("-A {attr}"));
    let parts = [shell.map(str::to_owned), attr, wish.what.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The store, opened when it is first needed.
#[derive(Default)]
struct Stores {
    store: OnceCell<Store>,
}

impl Stores {
    fn get(&self) -> Outcome<&Store> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let dirs = dirs::find()?;
        dirs::make(&dirs)?;
        let store = Store::open(&dirs.store()).map_err(|error| refused(error, "the store"))?;
        Ok(self.store.get_or_init(|| store))
    }
}

/// The store of this user.
pub fn store() -> Outcome<Store> {
    let stores = Stores::default();
    stores.get()?;
    Ok(stores.store.into_inner().expect("it was opened just now"))
}

/// Why the program cannot be started, if that is so: for when the server has refused it, as this takes milliseconds.
pub fn unstartable(program: &Program) -> Option<Failure> {
    let (path, _) = StorePath::split(&program.path).ok()?;
    let stores = Stores::default();
    let closure = stores.get().ok()?.closure(&[path]).ok()?;
    let error = calve_store::check_program(&closure, Path::new(&program.path)).err()?;
    let status = match &error {
        ProgramError::NotFound { .. } => ExitStatus::NotFound,
        _ => ExitStatus::NotExecutable,
    };
    let hint = error.hint();
    Some(Failure { hint, ..Failure::new(status, error.to_string()) })
}

/// What the store says, about what the user typed.
fn refused(error: StoreError, typed: impl AsRef<Path>) -> Failure {
    let typed = typed.as_ref().display().to_string();
    let hint = error.hint();
    let failure = match &error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::not_found(format!("there is no {typed}"))
        }
        StoreError::Unknown { .. } | StoreError::MissingOnDisk { .. } => {
            Failure::new(ExitStatus::NotFound, error.to_string())
        }
        _ => Failure::failed(format!("{typed} cannot be run")).caused_by(error),
    };
    Failure { hint, ..failure }
}

/// A program as it comes out of a store path.
#[cfg(test)]
pub fn program_for_tests(path: &str) -> Workload {
    Workload::Program(stored::bare_program(path.to_owned(), Vec::new()))
}
