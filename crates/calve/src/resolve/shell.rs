//! A command inside a Nix shell's environment, as `nix develop` makes it: `nix print-dev-env`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use calve_nix::StorePath;
use calve_nix::store_path::{HASH_CHARS, STORE_DIR};
use calve_wire::machine::Workload;
use serde::Deserialize;

use super::measure::{self, Limit};
use super::nix::{self, Talk};
use super::stored::bare_program;
use super::{Stores, Wish, flake, refused};
use crate::failure::{Failure, Outcome};
use crate::ui::Progress;

/// The most that the directory of a shell's Nix file may hold: it is copied for every run.
const WORK_TREE_LIMIT: Limit = Limit { bytes: 1 << 30, files: 200_000 };
/// Where that directory is in the machine.
const WORK_DIR: &str = "/work";
/// What the shell's bash does with the command: first what the shell's author wants done at its start.
const SCRIPT: &str = r#"eval "${shellHook:-}"; exec "$@""#;
/// Variables of the sandbox in which Nix builds, which mean nothing in a machine (`nix develop` drops the same ones).
const DROPPED: [&str; 24] = [
    "BASHOPTS",
    "EUID",
    "HOME",
    "NIX_BUILD_CORES",
    "NIX_BUILD_TOP",
    "NIX_ENFORCE_PURITY",
    "NIX_LOG_FD",
    "NIX_REMOTE",
    "OLDPWD",
    "PPID",
    "PWD",
    "SHELLOPTS",
    "SHLVL",
    "SSL_CERT_FILE",
    "TEMP",
    "TEMPDIR",
    "TERM",
    "TMP",
    "TMPDIR",
    "TZ",
    "UID",
    "_",
    "dontAddDisableDepTrack",
    "out",
];

/// What `nix print-dev-env --json` says.
#[derive(Deserialize)]
struct DevEnv {
    variables: BTreeMap<String, Variable>,
}

#[derive(Deserialize)]
struct Variable {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: serde_json::Value,
}

/// The shell of an attribute of a Nix file; the file's directory comes along as the working directory.
pub fn from_file(stores: &Stores, file: &Path, attr: Option<&str>, wish: &Wish) -> Outcome<Workload> {
    let shown = file.display().to_string();
    let mut args = vec!["print-dev-env", "--json", "-f", shown.as_str()];
    args.extend(attr);
    let env = parse(&nix::nix(&args, Talk::Shown)?)?;
    let file = file
        .canonicalize()
        .map_err(|error| Failure::not_found(format!("{shown} cannot be read")).caused_by(error))?;
    let directory = file.parent().expect("a file lies in a directory");
    workload(stores, &env, Some(directory), wish)
}

/// The shell of a flake reference; the flake's directory comes along where it is on this host.
pub fn from_flake(
    stores: &Stores,
    reference: &str,
    wish: &Wish,
    revision: &mut Option<String>,
) -> Outcome<Workload> {
    let pinned = flake::pin(reference)?;
    *revision = pinned.revision;
    let env = parse(&nix::nix(&["print-dev-env", "--json", pinned.reference.as_str()], Talk::Shown)?)?;
    let source = reference.split_once('#').map_or(reference, |(source, _)| source);
    let source = source.strip_prefix("path:").unwrap_or(if source.is_empty() { "." } else { source });
    let directory = Path::new(source);
    workload(stores, &env, directory.is_dir().then_some(directory), wish)
}

fn parse(printed: &[u8]) -> Outcome<DevEnv> {
    serde_json::from_slice(printed)
        .map_err(|error| Failure::failed("the shell's environment does not parse").caused_by(error))
}

fn workload(stores: &Stores, env: &DevEnv, directory: Option<&Path>, wish: &Wish) -> Outcome<Workload> {
    let bash = env.text("BASH").filter(|bash| bash.starts_with(STORE_DIR)).ok_or_else(|| {
        Failure::failed("the shell has no bash out of the Nix store")
            .hint("make it with mkShell or stdenv.mkDerivation")
    })?;
    let mut args = vec!["-c".to_owned(), SCRIPT.to_owned(), "bash".to_owned()];
    args.extend(wish.args.iter().cloned());
    let mut program = bare_program(bash.to_owned(), args);
    program.env = env.exported();
    if let Some(hook) = env.text("shellHook") {
        program.env.insert("shellHook".to_owned(), hook.to_owned());
    }
    program.extra_roots = referred(program.env.values(), |path| {
        stores.get().is_ok_and(|store| store.locate(Path::new(&path.to_string())).is_ok())
    });
    if let Some(directory) = directory {
        program.work_tree = Some(snapshot(stores, directory)?);
        program.cwd = Some(WORK_DIR.to_owned());
        program.env.insert("out".to_owned(), format!("{WORK_DIR}/outputs/out"));
    }
    Ok(Workload::Program(program))
}

impl DevEnv {
    fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.value.as_str()
    }

    /// What a command sees: exported variables that mean something outside of a build.
    fn exported(&self) -> BTreeMap<String, String> {
        let exported = self
            .variables
            .iter()
            .filter(|(name, variable)| variable.kind == "exported" && !DROPPED.contains(&name.as_str()));
        exported.filter_map(|(name, v)| Some((name.clone(), v.value.as_str()?.to_owned()))).collect()
    }
}

/// The store paths that texts mention and that are there: what the environment refers to.
fn referred<'a>(
    texts: impl Iterator<Item = &'a String>,
    is_there: impl Fn(&StorePath) -> bool,
) -> Vec<StorePath> {
    let mut paths = BTreeSet::new();
    for text in texts {
        for (at, _) in text.match_indices(STORE_DIR) {
            let mention = &text[at..];
            let allowed = |c: char| c.is_ascii_alphanumeric() || "+-._?=/".contains(c);
            let mention = &mention[..mention.find(|c| !allowed(c)).unwrap_or(mention.len())];
            if mention.len() > STORE_DIR.len() + 1 + HASH_CHARS
                && let Ok((path, _)) = StorePath::split(mention)
            {
                paths.insert(path);
            }
        }
    }
    paths.into_iter().filter(is_there).collect()
}

/// Copies the directory into the store as it is now.
fn snapshot(stores: &Stores, directory: &Path) -> Outcome<StorePath> {
    let progress = Progress::new(&format!("copying {}", directory.display()));
    measure::check(directory, WORK_TREE_LIMIT).map_err(|failure| {
        failure
            .hint("the directory of the shell's Nix file comes along; move what it does not need elsewhere")
    })?;
    let path = stores.get()?.add(directory, Some("work")).map_err(|error| refused(error, directory));
    drop(progress);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_refers_to_the_store_paths_in_its_values() {
        let a = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";
        let b = "/nix/store/1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b";
        let texts = [format!("{a}/bin:{b}/bin:{a}/lib:/usr/bin"), "-I/nix/store/bad -L/nix/store".to_owned()];
        let found = referred(texts.iter(), |_| true);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [a, b]);
        assert!(referred(texts.iter(), |path| path.name() == "b").len() == 1);
    }

    #[test]
    fn only_exported_variables_that_mean_something_in_a_machine_are_kept() {
        let json = br#"{"bashFunctions": {"f": "x"}, "variables": {
            "PATH": {"type": "exported", "value": "/p"}, "HOME": {"type": "exported", "value": "/homeless-shelter"},
            "BASH": {"type": "var", "value": "/nix/store/b/bin/bash"}, "list": {"type": "array", "value": ["a"]},
            "shellHook": {"type": "exported", "value": "echo hi"}}}"#;
        let env = parse(json).unwrap();
        assert_eq!(env.exported().into_keys().collect::<Vec<_>>(), ["PATH", "shellHook"]);
        assert_eq!(env.text("BASH"), Some("/nix/store/b/bin/bash"));
        assert!(parse(b"[]").is_err());
    }
}
