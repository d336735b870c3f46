//! `-A attr file.nix`: built by the user's own `nix-build`.

use calve_wire::machine::Workload;

use super::nix::{self, Talk};
use super::{Stores, Wish, stored};
use crate::failure::Outcome;

/// Builds the attribute of the file and runs it.
pub fn workload(stores: &Stores, file: &str, attr: Option<&str>, wish: &Wish) -> Outcome<Workload> {
    let mut args = vec!["--no-out-link", file];
    if let Some(attr) = attr {
        args.extend(["-A", attr]);
    }
    let printed = nix::classic("nix-build", &args, Talk::Shown)?;
    let path = nix::one_path(&printed, attr.unwrap_or(file))?;
    let place = stored::place_of(stores, &path)?;
    stored::workload(&place, wish, &mut || {
        let main = match attr {
            Some(attr) => format!("{attr}.meta.mainProgram"),
            None => "meta.mainProgram".to_owned(),
        };
        let args = ["--eval", "--json", file, "-A", &main];
        nix::optional_text(nix::classic("nix-instantiate", &args, Talk::Hidden))
    })
}
