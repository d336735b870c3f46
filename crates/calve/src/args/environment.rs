//! The program's environment: `-e K=V`, `-e K` (taken from ours), `--env-file`.

use std::collections::BTreeMap;
use std::path::Path;

use calve_core::limits::{ARG_MAX_BYTES, ENV_MAX_BYTES};

use crate::args::show_size;
use crate::failure::{Failure, Outcome};

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// The environment of a program: first the files in order, then the single variables, later ones winning.
/// `own` looks a variable up in our own environment.
pub fn gather(
    files: &[impl AsRef<Path>],
    singles: &[String],
    own: impl Fn(&str) -> Option<String>,
) -> Outcome<Environment> {
    let mut env = Environment::new();
    for file in files {
        env.extend(read_file(file.as_ref())?);
    }
    for single in singles {
        let (name, value) = match single.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (single.as_str(), own(single).ok_or_else(|| not_set(single))?),
        };
        check_name(name).map_err(|why| Failure::usage(format!("--env {single}: {why}")))?;
        env.insert(name.to_owned(), value);
    }
    check_size(&env)?;
    Ok(env)
}

fn not_set(name: &str) -> Failure {
    Failure::usage(format!("--env {name} takes {name} from your environment, where it is not set"))
        .hint(format!("write -e {name}=VALUE, or export {name} first"))
}

/// One `NAME=VALUE` a line, the value literally to the end of the line; blank lines and lines that begin with `#` say
/// nothing.
fn read_file(path: &Path) -> Outcome<Environment> {
    let shown = path.display();
    // Read at most what a program could be given, and a comment or two: not a disk image by mistake.
    let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if size > 4 * ENV_MAX_BYTES as u64 {
        return Err(too_large(size));
    }
    let text = std::fs::read(path).map_err(|error| {
        Failure::not_found(format!("the environment file {shown} cannot be read")).caused_by(error)
    })?;
    let text = String::from_utf8(text)
        .map_err(|_| Failure::usage(format!("the environment file {shown} is not UTF-8 text")))?;
    let mut env = Environment::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Failure::usage(format!("{shown}, line {}: {why}", index + 1));
        let (name, value) = line.split_once('=').ok_or_else(|| {
            wrong("there is no `=`").hint("each line reads NAME=VALUE; comments begin with #")
        })?;
        check_name(name).map_err(|why| wrong(&why))?;
        if value.contains('\0') {
            return Err(wrong("an environment variable cannot hold a zero byte"));
        }
        env.insert(name.to_owned(), value.to_owned());
    }
    Ok(env)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a variable needs a name before the `=`".to_owned());
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{name:?} is no name of a variable: it holds blanks"));
    }
    Ok(())
}

/// Refuses what the kernel would refuse in the machine, where the error would come late and say little.
pub fn check_size(env: &Environment) -> Outcome<()> {
    let longest = env.iter().max_by_key(|(name, value)| name.len() + value.len());
    if let Some((name, value)) = longest.filter(|(name, value)| name.len() + value.len() + 2 > ARG_MAX_BYTES)
    {
        return Err(Failure::usage(format!(
            "the environment variable {name} has {}, the kernel takes {} in one",
            show_size(value.len() as u64),
            show_size(ARG_MAX_BYTES as u64 + 1)
        ))
        .hint("put it in a file, and the file's path in the variable"));
    }
    let total: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if total > ENV_MAX_BYTES { Err(too_large(total as u64)) } else { Ok(()) }
}

fn too_large(bytes: u64) -> Failure {
    Failure::usage(format!(
        "the environment has {}, a program takes at most {}",
        show_size(bytes),
        show_size(ENV_MAX_BYTES as u64)
    ))
    .hint("put large values in files")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(files: &[&Path], singles: &[&str]) -> String {
        let singles: Vec<String> = singles.iter().map(|s| (*s).to_owned()).collect();
        gather(files, &singles, |_| None).unwrap_err().sentence
    }

    #[test]
    fn files_come_first_singles_win_and_bare_names_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# talk\n\nA=1\nB= two = 'x' \n").unwrap();
        let env =
            gather(&[&file], &["A=2".to_owned(), "HOME".to_owned()], |_| Some("/h".to_owned())).unwrap();
        let pairs: Vec<_> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("A", "2"), ("B", " two = 'x' "), ("HOME", "/h")]);
    }

    #[test]
    fn bad_environments_get_one_sentence_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "A=1\nexport\n").unwrap();
        assert_eq!(sentence(&[&file], &[]), format!("{}, line 2: there is no `=`", file.display()));
        std::fs::write(&file, b"A=\xff\n").unwrap();
        assert!(sentence(&[&file], &[]).contains("not UTF-8"));
        assert!(sentence(&[Path::new("/no/such")], &[]).contains("cannot be read"));
        assert!(sentence(&[], &["GONE"]).contains("not set"));
        assert!(sentence(&[], &["=x"]).contains("needs a name"));
        assert!(sentence(&[], &[&format!("A={}", "x".repeat(200_000))]).contains("A has 195K"));
        let many: Vec<String> = (0..100).map(|n| format!("V{n}={}", "x".repeat(100_000))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(sentence(&[], &many), "the environment has 9.5M, a program takes at most 480K");
    }
}
