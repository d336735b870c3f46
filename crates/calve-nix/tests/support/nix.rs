//! The real Nix, with stores of its own below a temporary directory and no network.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub struct Nix {
    pub dir: TempDir,
}

impl Nix {
    /// None where there is no Nix; where nothing may be missing (`CI`), its absence fails the test.
    pub fn find() -> Option<Self> {
        let found = Command::new("nix-store").arg("--version").output().is_ok();
        assert!(found || std::env::var_os("CI").is_none(), "nix is missing");
        if !found {
            eprintln!("not compared: nix is not installed");
            return None;
        }
        let nix = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(nix.path("conf")).unwrap();
        let settings = "experimental-features = nix-command ca-derivations\nsubstitute = false\nsandbox = false\n\
                        build-users-group =\n";
        fs::write(nix.path("conf/nix.conf"), settings).unwrap();
        Some(nix)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("HOME", self.dir.path()).env("NIX_CONF_DIR", self.path("conf")).env_remove("NIX_REMOTE");
        for variable in ["NIX_CONFIG", "NIX_PATH", "NIX_STORE_DIR", "NIX_USER_CONF_FILES", "XDG_CONFIG_HOME"]
        {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a command that must succeed and gives its standard output.
    pub fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Vec<u8> {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// `nix-store --restore` of an archive.
    pub fn restore(&self, archive: &[u8], to: &Path) -> Output {
        let mut command = self.command("nix-store");
        command.arg("--restore").arg(to).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may refuse the archive before it has read all of it.
        let _ = child.stdin.take().unwrap().write_all(archive);
        child.wait_with_output().unwrap()
    }
}
