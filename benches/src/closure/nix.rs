//! Real Nix as the peer, with stores in directories of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use calve_nix::StorePath;
use calve_store::{Store, StoreOptions};

/// Substitutions and connections that the best peer may have at once.
const JOBS: &str = "128";

/// A store that no other Nix knows; gone when it is dropped.
pub struct NixRoot {
    dir: tempfile::TempDir,
}

impl NixRoot {
    pub fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("calve-bench-nix-").tempdir()?;
        let nix = Self { dir };
        let script = format!(
            "#!/bin/sh\nNIX_CONFIG='build-users-group =' exec nix-store --store '{}' \"$@\"\n",
            nix.root().display()
        );
        std::fs::write(nix.program(), script)?;
        std::fs::set_permissions(nix.program(), PermissionsExt::from_mode(0o755))?;
        run(nix.command("nix-store").arg("--store").arg(nix.root()).arg("--init"))?;
        std::fs::create_dir_all(nix.root().join("nix/store"))?;
        Ok(nix)
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn host_path(&self, path: &StorePath) -> PathBuf {
        self.root().join("nix/store").join(path.base_name())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("nix-store")
    }

    /// A program of Nix that finds nothing of this host's, and remembers nothing of before.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let home = self.dir.path().join("home");
        let netrc = self.dir.path().join("netrc");
        command.env("HOME", &home).env("XDG_CACHE_HOME", home.join(".cache")).env_remove("NIX_REMOTE");
        command.env("NIX_USER_CONF_FILES", "/dev/null").stdin(Stdio::null());
        let config = format!(
            "build-users-group =\nexperimental-features = nix-command\nsubstituters =\nrequire-sigs = false\nnetrc-file = {}\n",
            netrc.display()
        );
        command.env("NIX_CONFIG", config);
        command
    }

    /// Lets Nix upload to a cache on this host.
    pub fn allow(&self, token: &str) -> anyhow::Result<()> {
        let line = format!("machine 127.0.0.1 login bench password {token}\n");
        Ok(std::fs::write(self.dir.path().join("netrc"), line)?)
    }

    /// `nix copy --to CACHE` at a level of zstd.
    pub fn copy_to(&self, cache: &str, path: &StorePath, level: i32) -> anyhow::Result<()> {
        let _ = std::fs::remove_dir_all(self.dir.path().join("home"));
        let cache = format!("{cache}?compression=zstd&compression-level={level}");
        run(self
            .command("nix")
            .arg("--store")
            .arg(self.root())
            .args(["copy", "--to", &cache])
            .arg(path.to_string()))
    }

    /// `nix copy --from CACHE` into this store.
    pub fn copy_from(&self, cache: &str, path: &StorePath) -> anyhow::Result<()> {
        let mut command = self.command("nix");
        command.args(["copy", "--no-check-sigs", "--from", cache, "--to"]).arg(self.root());
        run(command.arg(path.to_string()))
    }

    /// `nix-store --realise` with as many jobs as help.
    pub fn substitute(&self, cache: &str, path: &StorePath) -> anyhow::Result<()> {
        let mut command = self.command("nix-store");
        command.arg("--store").arg(self.root()).args(["--realise", "-j", JOBS]);
        command.args(["--option", "http-connections", JOBS, "--option", "substituters", cache]);
        run(command.arg(path.to_string()))
    }

    /// `nix path-info --recursive`: what is known of a closure in a cache.
    pub fn path_info(&self, cache: &str, path: &StorePath) -> anyhow::Result<()> {
        run(self.command("nix").args(["path-info", "--recursive", "--store", cache]).arg(path.to_string()))
    }

    /// The closure is whole, says Nix.
    pub fn verify(&self, path: &StorePath) -> anyhow::Result<()> {
        run(self
            .command("nix-store")
            .arg("--store")
            .arg(self.root())
            .arg("--verify-path")
            .arg(path.to_string()))
    }
}

/// The store below a [`NixRoot::dir`].
pub fn open(dir: &Path) -> anyhow::Result<Store> {
    let options = StoreOptions {
        nix_db: dir.join("root/nix/var/nix/db/db.sqlite"),
        nix_store_dir: dir.join("root/nix/store"),
        nix_store_program: dir.join("nix-store"),
    };
    Ok(Store::open_with(&dir.join("private"), options)?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}
