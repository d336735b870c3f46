//! Flake references: built by the user's own `nix`, pinned to the revision that was found first.

use std::collections::BTreeMap;

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

/// Builds what the reference names.
pub fn built(reference: &str) -> Outcome<StorePath> {
    build(&pin(reference)?.reference, reference)
}

/// One of the things that `nix build --json` built. (`--print-out-paths` would be plainer, but Nix 2.8 does not know it.)
#[derive(Deserialize)]
struct Built {
    outputs: BTreeMap<String, Option<String>>,
}

fn build(pinned: &str, typed: &str) -> Outcome<StorePath> {
    let printed = nix::nix(&["build", "--no-link", "--json", pinned], Talk::Shown)?;
    main_output(&printed, typed)
}

/// The output that is called `out`, or the only one.
fn main_output(printed: &[u8], typed: &str) -> Outcome<StorePath> {
    let built: Vec<Built> = serde_json::from_slice(printed)
        .map_err(|error| Failure::failed("what nix says of the build does not parse").caused_by(error))?;
    let [built] = built.as_slice() else {
        return Err(Failure::usage(format!("{typed} gives {} things, and one is needed", built.len())));
    };
    let output = built.outputs.get("out").or_else(|| built.outputs.values().next()).cloned().flatten();
    let output = output.ok_or_else(|| Failure::failed(format!("{typed} gives no store path")))?;
    nix::one_path(output.as_bytes(), typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_with_several_outputs_gives_its_main_one() {
        let path = |name: &str| format!("/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-{name}");
        let one = |json: String| main_output(json.as_bytes(), "x").map(|path| path.name().to_owned());
        let (dev, out) = (path("x-dev"), path("x"));
        let both = format!(r#"[{{"drvPath":"d","outputs":{{"dev":"{dev}","out":"{out}"}}}}]"#);
        assert_eq!(one(both).unwrap(), "x");
        assert_eq!(one(format!(r#"[{{"outputs":{{"dev":"{dev}"}}}}]"#)).unwrap(), "x-dev");
        assert!(one(r#"[{"outputs":{"out":null}}]"#.to_owned()).is_err());
        assert!(one("[]".to_owned()).unwrap_err().sentence.contains("0 things"));
    }
}
