//! Flake references: built by the user's own `nix`, pinned to the revision that was found first.

use calve_nix::StorePath;
use calve_wire::machine::Workload;
use serde::Deserialize;

use super::nix::{self, Talk};
use super::{Stores, Wish, stored};
use crate::failure::{Failure, Outcome};

/// A flake reference with its fragment, pinned where its source can be.
pub struct Pinned {
    /// What is built: `<url>#<fragment>`.
    pub reference: String,
    /// The Git revision, where there is one.
    pub revision: Option<String>,
}

/// What `nix flake metadata --json` says.
#[derive(Deserialize)]
struct Metadata {
    /// The locked URL.
    url: Option<String>,
    revision: Option<String>,
    #[serde(default)]
    locked: Locked,
}

#[derive(Deserialize, Default)]
struct Locked {
    rev: Option<String>,
}

/// Asks which revision the reference means now, so that what is recorded is what is built.
pub fn pin(reference: &str) -> Outcome<Pinned> {
    let (source, fragment) = reference.split_once('#').map_or((reference, None), |(s, f)| (s, Some(f)));
    let source = if source.is_empty() { "." } else { source };
    let printed = nix::nix(&["flake", "metadata", "--json", source], Talk::Shown)?;
    let metadata: Metadata = serde_json::from_slice(&printed)
        .map_err(|error| Failure::failed("what nix says of the flake does not parse").caused_by(error))?;
    let revision = metadata.locked.rev.or(metadata.revision);
    // Only what has a revision is the same tomorrow; a work tree with changes is built as it is.
    let pinned = metadata.url.filter(|_| revision.is_some()).unwrap_or_else(|| source.to_owned());
    let reference = fragment.map_or(pinned.clone(), |fragment| format!("{pinned}#{fragment}"));
    Ok(Pinned { reference, revision })
}

/// Builds what the reference names and runs it.
pub fn workload(
    stores: &Stores,
    reference: &str,
    wish: &Wish,
    revision: &mut Option<String>,
) -> Outcome<Workload> {
    let pinned = pin(reference)?;
    revision.clone_from(&pinned.revision);
    let path = build(&pinned.reference, reference)?;
    let place = stored::place_of(stores, &path)?;
    stored::workload(&place, wish, &mut || {
        let apply = r#"p: p.meta.mainProgram or """#;
        let args = ["eval", "--raw", &pinned.reference, "--apply", apply];
        nix::optional_text(nix::nix(&args, Talk::Hidden))
    })
}

fn build(pinned: &str, typed: &str) -> Outcome<StorePath> {
    let printed = nix::nix(&["build", "--no-link", "--print-out-paths", pinned], Talk::Shown)?;
    nix::one_path(&printed, typed)
}
