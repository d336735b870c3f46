//! Where this user's calve keeps things, as every command finds it.

use calve_server::dirs::Dirs;

use crate::failure::{Failure, Outcome};

const NONE: &str = "calve has no place for its data";

/// The directories, whether or not they are there.
pub fn find() -> Outcome<Dirs> {
    Dirs::from_env().map_err(|error| Failure::failed(NONE).caused_by(error))
}

/// Makes those that are not there.
pub fn make(dirs: &Dirs) -> Outcome<()> {
    dirs.create().map_err(|error| Failure::failed(NONE).caused_by(error))
}
