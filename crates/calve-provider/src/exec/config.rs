//! Which plugins there are: a file with a line for each, `NAME PROGRAM [ARGUMENT]…`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names the file.
const FILE_VARIABLE: &str = "CALVE_PROVIDERS";
/// Most bytes of the file: a line has some hundred.
const FILE_MAX_BYTES: u64 = 64 * 1024;
/// Most bytes of a plugin's name.
const NAME_MAX_BYTES: usize = 40;

/// How a plugin is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    /// An absolute path.
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// Why there are no plugins.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No configuration.
    #[error("there are no plugins: {} is not there; write `NAME /path/to/plugin` in it, one a line", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// No directory to look in.
    #[error("there are no plugins: neither {FILE_VARIABLE} nor HOME is set")]
    Homeless,
    /// The file or a program cannot be read.
    #[error("{}: it cannot be read", file.display())]
    Unreadable {
        /// The file or program.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else may say what is started.
    #[error("{}: others may change it (mode {mode:03o}, owner {owner}); run `chmod go-w` on it as its owner", file.display())]
    Exposed {
        /// The file or program.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The user who owns it.
        owner: u32,
    },
    /// A line makes no sense.
    #[error("{}, line {line}: {why}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// Where the file is or would be.
pub(super) fn file(variables: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    let set = |name: &str| variables(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(FILE_VARIABLE)
        .or_else(|| Some(set("CALVE_HOME")?.join("providers")))
        .or_else(|| Some(set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute())?.join("calve/providers")))
        .or_else(|| Some(set("HOME")?.join(".config/calve/providers")))
        .ok_or(ConfigError::Homeless)
}

/// Reads it; it and each program may be changed by this user and root alone.
pub(super) fn read(file: &Path) -> Result<BTreeMap<String, Command>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
    // Checked as opened: the name may come to mean another file.
    let open = std::fs::File::open(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing { file: file.to_owned() },
        _ => unreadable(error),
    })?;
    check(file, &open.metadata().map_err(unreadable)?)?;
    let mut text = String::new();
    open.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    let mut plugins = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let bad = |why| ConfigError::Line { file: file.to_owned(), line: number + 1, why };
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        let Some(name) = words.next().filter(|name| !name.starts_with('#')) else { continue };
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.len() > NAME_MAX_BYTES || name.starts_with('-') || !name.bytes().all(plain) {
            return Err(bad("a plugin's name has lower-case letters, digits and dashes"));
        }
        let program = PathBuf::from(words.next().ok_or_else(|| bad("the program is missing"))?);
        if !program.is_absolute() {
            return Err(bad("the program is named by its whole path"));
        }
        let found = std::fs::metadata(&program);
        let found = found.map_err(|source| ConfigError::Unreadable { file: program.clone(), source })?;
        check(&program, &found)?;
        if plugins.insert(name, Command { program, arguments: words.collect() }).is_some() {
            return Err(bad("there is a plugin of this name already"));
        }
    }
    Ok(plugins)
}

fn check(file: &Path, found: &std::fs::Metadata) -> Result<(), ConfigError> {
    let (mode, owner) = (found.mode() & 0o777, found.uid());
    if mode & 0o022 != 0 || (owner != 0 && owner != rustix::process::geteuid().as_raw()) {
        return Err(ConfigError::Exposed { file: file.to_owned(), mode, owner });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn plugins_are_read_and_what_others_may_change_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("providers");
        let read_text = |text: &str| {
            std::fs::write(&config, text).unwrap();
            std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
            read(&config).map_err(|error| error.to_string())
        };
        assert!(read(&config).unwrap_err().to_string().contains("is not there"));
        let plugins = read_text("# mine\n\nlab /bin/sh -c x\nother-2 /bin/true\n").unwrap();
        assert_eq!(plugins["lab"].arguments, ["-c", "x"]);
        assert_eq!(plugins.len(), 2);
        for (bad, word) in [
            ("lab", "line 1: the program is missing"),
            ("\nlab sh", "line 2: the program is named by its whole path"),
            ("La_b /bin/sh", "lower-case"),
            ("lab /bin/sh\nlab /bin/true", "already"),
            ("lab /none/x", "/none/x"),
        ] {
            assert!(read_text(bad).unwrap_err().contains(word), "{bad}");
        }
        let program = dir.path().join("plugin");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o775)).unwrap();
        assert!(read_text(&format!("lab {}", program.display())).unwrap_err().contains("chmod go-w"));
        read_text("lab /bin/sh").unwrap();
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(&config).unwrap_err().to_string().contains("chmod go-w"));
    }
}
