//! Tells the forms of what can be run apart. Looks at the disk only to see what is there.

use std::path::{Path, PathBuf};

use super::Wish;
use crate::failure::{Failure, Outcome};

/// How what runs was named.
#[derive(Debug, PartialEq, Eq)]
pub enum Form {
    /// Not at all: the base guest.
    Base,
    /// A path: in a store, a link to one, or a plain file.
    Path(PathBuf),
    /// An attribute of a Nix file, or all of the file.
    Attr {
        /// The file, or what else `nix-build` takes in its place.
        file: String,
        /// The attribute's path.
        attr: Option<String>,
    },
    /// A flake reference.
    Flake(String),
    /// A shell from an attribute of a Nix file.
    ShellFile {
        /// The file.
        file: PathBuf,
        /// The attribute's path.
        attr: Option<String>,
    },
    /// A shell from a flake reference.
    ShellFlake(String),
}

/// Schemes that only flake references have (Nix manual, "Flake references", "Types").
const FLAKE_SCHEMES: [&str; 8] =
    ["github:", "gitlab:", "sourcehut:", "git+", "hg+", "path:", "flake:", "tarball+"];

/// The form of what the user typed.
pub fn classify(wish: &Wish) -> Outcome<Form> {
    if wish.shell {
        return shell(wish);
    }
    if let Some(attr) = &wish.attr {
        return Ok(Form::Attr { file: nix_file(wish)?, attr: Some(attr.clone()) });
    }
    let Some(what) = wish.what.as_deref() else {
        return if wish.args.is_empty() {
            Ok(Form::Base)
        } else {
            Err(Failure::usage("there are arguments, and nothing that takes them")
                .hint("name what runs before the `--`"))
        };
    };
    if is_flake(what) {
        return Ok(Form::Flake(what.to_owned()));
    }
    let path = PathBuf::from(what);
    if path.is_file() && what.ends_with(".nix") {
        return Ok(Form::Attr { file: what.to_owned(), attr: None });
    }
    if path.is_dir() {
        return directory(what, path);
    }
    if std::fs::symlink_metadata(&path).is_err() && !what.starts_with("/nix/store/") {
        return Err(nothing_there(what));
    }
    Ok(Form::Path(path))
}

/// Whether it can only be meant for `nix`: a scheme, or a `#` in what is no file.
fn is_flake(what: &str) -> bool {
    let scheme = FLAKE_SCHEMES.iter().any(|scheme| what.starts_with(scheme));
    let url = ["https://", "http://", "file://", "ssh://"].iter().any(|scheme| what.starts_with(scheme));
    scheme || url || (what.contains('#') && !Path::new(what).exists())
}

/// A directory is a program's tree, unless Nix files in it say how to make something.
fn directory(what: &str, path: PathBuf) -> Outcome<Form> {
    if path.join("bin").is_dir() || path.join("init").exists() || path.starts_with("/nix/store") {
        return Ok(Form::Path(path));
    }
    if path.join("flake.nix").is_file() {
        // `nix` takes a path for a path only if it looks like one.
        let looks = what.starts_with('/') || what.starts_with('.');
        return Ok(Form::Flake(if looks { what.to_owned() } else { format!("./{what}") }));
    }
    let default = path.join("default.nix");
    if default.is_file() {
        return Ok(Form::Attr { file: default.display().to_string(), attr: None });
    }
    Ok(Form::Path(path))
}

fn shell(wish: &Wish) -> Outcome<Form> {
    if wish.args.is_empty() {
        return Err(Failure::usage("--shell needs a command")
            .hint("write it behind `--`: calve run --shell -A env default.nix -- make"));
    }
    match wish.what.as_deref() {
        Some(what)
            if is_flake(what) || (Path::new(what).join("flake.nix").is_file() && wish.attr.is_none()) =>
        {
            if wish.attr.is_some() {
                return Err(Failure::usage("-A belongs to a Nix file, and this is a flake reference")
                    .hint(format!("write the attribute behind a #: {what}#…")));
            }
            Ok(Form::ShellFlake(what.to_owned()))
        }
        Some(what) => {
            let path = PathBuf::from(what);
            let file = if path.is_dir() { first_of(&path, &["shell.nix", "default.nix"])? } else { path };
            if !file.is_file() {
                return Err(nothing_there(what));
            }
            Ok(Form::ShellFile { file, attr: wish.attr.clone() })
        }
        None => {
            let file = first_of(Path::new(""), &["shell.nix", "default.nix"])?;
            Ok(Form::ShellFile { file, attr: wish.attr.clone() })
        }
    }
}

fn first_of(directory: &Path, names: &[&str]) -> Outcome<PathBuf> {
    let found = names.iter().map(|name| directory.join(name)).find(|file| file.is_file());
    let place = if directory.as_os_str().is_empty() {
        "here".to_owned()
    } else {
        format!("in {}", directory.display())
    };
    found.ok_or_else(|| {
        Failure::not_found(format!("there is no {} {place}", names.join(" and no ")))
            .hint("name the Nix file: calve run … FILE.nix")
    })
}

/// The file that `-A` belongs to: what was typed, or `default.nix` here. URLs and `<…>` are `nix-build`'s to judge.
fn nix_file(wish: &Wish) -> Outcome<String> {
    let Some(what) = wish.what.as_deref() else {
        return Ok(first_of(Path::new(""), &["default.nix"])?.display().to_string());
    };
    if what.contains("://") || what.starts_with('<') || Path::new(what).exists() {
        return Ok(what.to_owned());
    }
    if is_flake(what) {
        return Err(Failure::usage("-A belongs to a Nix file, and this is a flake reference")
            .hint("write the attribute behind the #"));
    }
    Err(nothing_there(what))
}

fn nothing_there(what: &str) -> Failure {
    if what.is_empty() {
        return Failure::usage("an empty text names nothing to run")
            .hint("give a store path, a file or a flake reference; without any the base guest is started");
    }
    let failure = Failure::not_found(format!("there is no {what}"));
    if what.contains('/') {
        failure
            .hint("give a store path, a file, a link such as ./result, or a flake reference such as .#hello")
    } else {
        failure.hint(format!("a file here is ./{what}, an attribute of nixpkgs is nixpkgs#{what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ExitStatus;

    fn form(what: &str) -> Outcome<Form> {
        classify(&Wish { what: Some(what.to_owned()), ..Wish::default() })
    }

    #[test]
    fn flake_references_are_told_from_paths() {
        for reference in [
            ".#web",
            "nixpkgs#hello",
            "github:a/b",
            "git+https://h/r?rev=1#web",
            "path:/x",
            "https://h/x.tar.gz",
        ] {
            assert_eq!(form(reference).unwrap(), Form::Flake(reference.to_owned()));
        }
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a#b");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(form(odd.to_str().unwrap()).unwrap(), Form::Path(odd));
        let store = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-x/bin/x";
        assert_eq!(form(store).unwrap(), Form::Path(store.into()));
    }

    #[test]
    fn directories_are_trees_unless_nix_files_say_how_to_make_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(form(path).unwrap(), Form::Path(path.into()));
        std::fs::write(dir.path().join("default.nix"), "").unwrap();
        let default = format!("{path}/default.nix");
        assert_eq!(form(path).unwrap(), Form::Attr { file: default.clone(), attr: None });
        assert_eq!(form(&default).unwrap(), Form::Attr { file: default, attr: None });
        std::fs::write(dir.path().join("flake.nix"), "").unwrap();
        assert_eq!(form(path).unwrap(), Form::Flake(path.to_owned()));
    }

    #[test]
    fn what_is_not_there_says_what_may_be_meant() {
        let failure = form("hello").unwrap_err();
        assert_eq!((failure.status, failure.sentence.as_str()), (ExitStatus::NotFound, "there is no hello"));
        assert!(failure.hint.unwrap().contains("nixpkgs#hello"));
        assert_eq!(classify(&Wish::default()).unwrap(), Form::Base);
        let args = vec!["x".to_owned()];
        assert_eq!(classify(&Wish { args, ..Wish::default() }).unwrap_err().status, ExitStatus::Usage);
        let shell = Wish { shell: true, ..Wish::default() };
        assert!(classify(&shell).unwrap_err().hint.unwrap().contains("-- make"));
    }
}
