//! What runs in a store path that was given without a program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::failure::{ExitStatus, Failure, Outcome};

/// Most candidates that an error lists.
const LISTED_MAX: usize = 12;

/// What runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// A system is booted.
    System,
    /// The path itself is the program.
    File,
    /// A program in its `bin`.
    Bin(String),
}

/// Chooses what runs in the store path called `name` whose files lie at `host`. `main_program` is asked for the package's
/// `meta.mainProgram` only where the files leave a choice; it may take a while.
pub fn choose(host: &Path, name: &str, main_program: &mut dyn FnMut() -> Option<String>) -> Outcome<Entry> {
    let metadata = fs::metadata(host)
        .map_err(|error| Failure::not_found(format!("{} cannot be read", host.display())).caused_by(error))?;
    if metadata.is_file() {
        check_executable(host)?;
        return Ok(Entry::File);
    }
    // Their targets may lie in stores that this host does not show at that place.
    let has = |name: &str| fs::symlink_metadata(host.join(name)).is_ok();
    if has("init") && (has("kernel") || has("nixos-version")) {
        return Ok(Entry::System);
    }
    let programs = programs_in(&host.join("bin"));
    match programs.as_slice() {
        [] => Err(Failure::new(
            ExitStatus::NotFound,
            format!("{name} holds no program: it has no bin with a file in it"),
        )
        .hint("name the program: calve run PATH/TO/PROGRAM")),
        [only] => Ok(Entry::Bin(only.clone())),
        _ => {
            let plain = without_version(name);
            let main = main_program().filter(|main| programs.contains(main));
            let named = programs.iter().find(|program| *program == plain).cloned();
            main.or(named).map(Entry::Bin).ok_or_else(|| ambiguous(name, &programs))
        }
    }
}

fn ambiguous(name: &str, programs: &[String]) -> Failure {
    let mut listed = programs[..programs.len().min(LISTED_MAX)].join(", ");
    if programs.len() > LISTED_MAX {
        listed.push_str(&format!(" and {} more", programs.len() - LISTED_MAX));
    }
    Failure::usage(format!(
        "{name} holds {} programs and none is called {}",
        programs.len(),
        without_version(name)
    ))
    .hint(format!("name one behind /bin/: {listed}"))
}

/// The names in a `bin` directory, sorted, without what a wrapper hides (`.name-wrapped`).
fn programs_in(bin: &Path) -> Vec<String> {
    let entries = fs::read_dir(bin).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// A package's name without its version: up to the first dash that no letter follows (Nix manual, `parseDrvName`).
fn without_version(name: &str) -> &str {
    let version = name
        .match_indices('-')
        .find(|(at, _)| name[at + 1..].chars().next().is_some_and(|next| !next.is_ascii_alphabetic()));
    version.map_or(name, |(at, _)| &name[..at])
}

/// Checks that the file may be executed by somebody.
pub fn check_executable(file: &Path) -> Outcome<()> {
    let shown = file.display();
    let metadata = fs::metadata(file)
        .map_err(|error| Failure::not_found(format!("{shown} cannot be read")).caused_by(error))?;
    let refuse = |why: &str| Failure::new(ExitStatus::NotExecutable, format!("{shown} {why}"));
    if metadata.is_dir() {
        return Err(refuse("is a directory, not a program").hint("name the program in it"));
    }
    if !metadata.is_file() {
        return Err(refuse("is no regular file"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(refuse("is not executable").hint(format!("if it is a program: chmod +x {shown}")));
    }
    // Before it is added to the store, which takes time and room. What cannot be read says so there.
    if calve_store::is_program_format(file).is_ok_and(|is| !is) {
        return Err(refuse("is not in an executable format: it is neither ELF nor a script"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    fn choice(files: &[&str], main: Option<&str>) -> Outcome<Entry> {
        choose(tree(files).path(), "my-tool-1.2", &mut || main.map(str::to_owned))
    }

    #[test]
    fn systems_files_and_programs_are_told_apart() {
        assert_eq!(choice(&["init", "kernel", "bin/x"], None).unwrap(), Entry::System);
        assert_eq!(choice(&["bin/only", "bin/.only-wrapped"], None).unwrap(), Entry::Bin("only".to_owned()));
        assert_eq!(choice(&["bin/a", "bin/my-tool"], None).unwrap(), Entry::Bin("my-tool".to_owned()));
        assert_eq!(choice(&["bin/a", "bin/my-tool"], Some("a")).unwrap(), Entry::Bin("a".to_owned()));
        assert_eq!(
            choice(&["bin/my-tool", "bin/b"], Some("gone")).unwrap(),
            Entry::Bin("my-tool".to_owned())
        );
        let file = tree(&["f"]);
        assert_eq!(choose(&file.path().join("f"), "f", &mut || None).unwrap(), Entry::File);
    }

    #[test]
    fn a_choice_that_only_the_user_can_make_lists_the_candidates() {
        let failure = choice(&["bin/a", "bin/b"], None).unwrap_err();
        assert_eq!(failure.sentence, "my-tool-1.2 holds 2 programs and none is called my-tool");
        assert_eq!(failure.hint.unwrap(), "name one behind /bin/: a, b");
        assert_eq!(choice(&["share/x"], None).unwrap_err().status, ExitStatus::NotFound);
        let file = tree(&["f"]);
        fs::set_permissions(file.path().join("f"), fs::Permissions::from_mode(0o644)).unwrap();
        let failure = choose(&file.path().join("f"), "f", &mut || None).unwrap_err();
        assert_eq!(failure.status, ExitStatus::NotExecutable);
    }

    #[test]
    fn versions_begin_behind_a_dash_without_a_letter() {
        let cases =
            [("hello-2.12", "hello"), ("a-b-1", "a-b"), ("x", "x"), ("gtk+3-3.24", "gtk+3"), ("a-", "a-")];
        for (name, plain) in cases {
            assert_eq!(without_version(name), plain);
        }
    }
}
