//! Where things lie on this host (`docs/design/001-shape.md`, "Directories").

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The directories of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// What outlives a reboot: state, logs, images, the private store.
    pub data: PathBuf,
    /// What does not: the socket and the run directories.
    pub run: PathBuf,
}

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// Neither `CALVE_HOME`, `XDG_DATA_HOME` nor `HOME` says where data goes.
    #[error("neither CALVE_HOME, XDG_DATA_HOME nor HOME is set, so there is no place for calve's data")]
    NoHome,
    /// A directory cannot be made.
    #[error("the directory {path} cannot be made")]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory belongs to somebody else, who could replace the socket in it.
    #[error("the directory {path} belongs to user {owner}, not to user {wanted}")]
    ForeignOwner {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this program.
        wanted: u32,
    },
}

impl Dirs {
    /// The directories that this process's environment says; nothing is made.
    pub fn from_env() -> Result<Self, DirsError> {
        Self::from_vars(|name| std::env::var_os(name).map(PathBuf::from), rustix::process::geteuid().as_raw())
    }

    fn from_vars(var: impl Fn(&str) -> Option<PathBuf>, uid: u32) -> Result<Self, DirsError> {
        // The XDG base directory specification has relative paths ignored, and empty ones taken for unset.
        let absolute = |name| var(name).filter(|path: &PathBuf| path.is_absolute());
        if let Some(home) = var("CALVE_HOME").filter(|path| !path.as_os_str().is_empty()) {
            let home = std::path::absolute(&home).unwrap_or(home);
            return Ok(Self { data: home.join("data"), run: home.join("run") });
        }
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
            .ok_or(DirsError::NoHome)?;
        let run = match absolute("XDG_RUNTIME_DIR") {
            Some(runtime) => runtime.join("calve"),
            None if uid == 0 => PathBuf::from("/run/calve"),
            None => PathBuf::from(format!("/tmp/calve-{uid}")),
        };
        Ok(Self { data: data.join("calve"), run })
    }

    /// Makes both directories, for their owner alone; existing ones must be this user's.
    pub fn create(&self) -> Result<(), DirsError> {
        for path in [&self.data, &self.run] {
            create_private(path)?;
        }
        Ok(())
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("calve.sock")
    }

    /// Locked by the one server that uses the data directory; holds its process id.
    pub fn lock(&self) -> PathBuf {
        self.data.join("lock")
    }

    /// The server's own log, for people.
    pub fn server_log(&self) -> PathBuf {
        self.data.join("server.log")
    }

    /// What the processes that mount closures lazily say.
    pub fn lazy_log(&self) -> PathBuf {
        self.data.join("lazy.log")
    }

    /// Events of all machines.
    pub fn events(&self) -> PathBuf {
        self.data.join("events")
    }

    /// Output of the machines, one directory each.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The private store, for paths that no Nix on this host knows.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// Links to the store paths that living machines hold.
    pub fn roots(&self) -> PathBuf {
        self.data.join("roots")
    }

    /// The key that signs this server's machines at providers.
    /// One each: a provider at which no machine was ever made need not be asked, nor have credentials.
    pub fn owner_key(&self, provider: &str) -> PathBuf {
        match provider {
            // The first provider's has the name that it always had.
            calve_provider::digitalocean::NAME => self.data.join("owner.key"),
            other => self.data.join(format!("owner-{other}.key")),
        }
    }

    /// The binary cache.
    pub fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }

    /// Images for guests.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }
}

fn create_private(path: &Path) -> Result<(), DirsError> {
    let failed = |source| DirsError::Create { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let owner = std::fs::metadata(path).map_err(failed)?.uid();
    let wanted = rustix::process::geteuid().as_raw();
    if owner != wanted {
        return Err(DirsError::ForeignOwner { path: path.to_owned(), owner, wanted });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(vars: &[(&str, &str)], uid: u32) -> Option<(String, String)> {
        let var =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
        let dirs = Dirs::from_vars(var, uid).ok()?;
        Some((dirs.data.display().to_string(), dirs.run.display().to_string()))
    }

    fn said(data: &str, run: &str) -> Option<(String, String)> {
        Some((data.to_owned(), run.to_owned()))
    }

    #[test]
    fn the_environment_says_where_things_lie() {
        assert_eq!(dirs(&[("CALVE_HOME", "/c"), ("HOME", "/h")], 1), said("/c/data", "/c/run"));
        assert_eq!(dirs(&[("HOME", "/h")], 7), said("/h/.local/share/calve", "/tmp/calve-7"));
        assert_eq!(dirs(&[("HOME", "/h")], 0), said("/h/.local/share/calve", "/run/calve"));
        let xdg = [("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r")];
        assert_eq!(dirs(&xdg, 7), said("/d/calve", "/r/calve"));
        assert_eq!(dirs(&[("HOME", "/h"), ("XDG_DATA_HOME", "d")], 7), dirs(&[("HOME", "/h")], 7));
        assert_eq!(dirs(&[], 7), None);
    }

    #[test]
    fn directories_are_for_their_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs { data: home.path().join("a/data"), run: home.path().join("a/run") };
        dirs.create().unwrap();
        dirs.create().unwrap();
        assert_eq!(std::fs::metadata(&dirs.data).unwrap().mode() & 0o777, 0o700);
    }
}
