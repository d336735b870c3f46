//! From what the user typed to a store path, where nothing is to run.

use std::path::PathBuf;

use calve_nix::StorePath;

use super::form::{self, Form};
use super::local::{self, Place};
use super::nix::{self, Talk};
use super::{Stores, Wish, flake};
use crate::failure::{Failure, Outcome};

/// The store path that is meant: built, or added to the store, where it is not there yet. Blocks while `nix` builds.
pub fn root(what: &str) -> Outcome<StorePath> {
    let stores = Stores::default();
    let wish = Wish { what: Some(what.to_owned()), ..Wish::default() };
    match form::classify(&wish)? {
        Form::Path(path) => locate(&stores, path),
        Form::Attr { file, .. } => {
            let printed = nix::classic("nix-build", &["--no-out-link", &file], Talk::Shown)?;
            nix::one_path(&printed, &file)
        }
        Form::Flake(reference) => flake::built(&reference),
        Form::Base | Form::ShellFile { .. } | Form::ShellFlake(_) => {
            Err(Failure::usage(format!("{what} names no store path")))
        }
    }
}

fn locate(stores: &Stores, path: PathBuf) -> Outcome<StorePath> {
    match local::locate(stores, &path)? {
        Place::Stored(place) => Ok(place.entry.path),
        Place::Outside(file) => local::add(stores, &file, &path),
    }
}
