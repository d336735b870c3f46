//! virtiofsd, the daemon that gives guests the host's store live. There are two: the older one in C came with QEMU up to
//! version 7.2, the one in Rust (<https://gitlab.com/virtio-fs/virtiofsd>) has a package of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use calve_store::{Closure, ClosurePath};
use calve_wire::agent::StoreMount;
use calve_wire::guard::{LIVE_STORE_DIR, LiveStore};

use super::emulator::in_path;
use crate::driver::{DriverError, DriverErrorKind};

/// Where distributions put it: Debian 13, Ubuntu 24.04 and Fedora; Arch; Debian 12 and Ubuntu 22.04 with QEMU itself.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// What to do where there is none.
pub(super) const INSTALL_HINT: &str = "install it: `apt-get install virtiofsd` (Debian 13, Ubuntu 24.04 and newer), `apt-get install qemu-system-common` \
     (older ones), `dnf install virtiofsd` (Fedora), `nix profile install nixpkgs#virtiofsd`";

/// An installed virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Virtiofsd {
    /// The program.
    pub(super) path: PathBuf,
    /// What it says of its version.
    pub(super) version: String,
    /// Whether it is the one that came with QEMU.
    of_qemu: bool,
}

impl Virtiofsd {
    /// Finds it. Blocks while it says its version.
    pub(super) fn find() -> Result<Self, DriverError> {
        let places = PLACES.iter().map(PathBuf::from).filter(|path| path.exists());
        let path = in_path("virtiofsd").into_iter().chain(places).next().ok_or_else(|| {
            DriverError::new(
                DriverErrorKind::Unusable,
                "virtiofsd is not installed, which a live store needs",
            )
            .hint(format!("{INSTALL_HINT}; or leave --store live out"))
        })?;
        let failed =
            || DriverError::new(DriverErrorKind::Unusable, format!("{} does not run", path.display()));
        let output = Command::new(&path).arg("--version").output().map_err(|e| failed().caused_by(e))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().filter(|_| output.status.success()).map(str::to_owned);
        let version = version.ok_or_else(|| failed().hint(INSTALL_HINT))?;
        Ok(Self { of_qemu: text.contains("QEMU"), version, path })
    }

    /// Its command line. It gets its socket as standard input, locks itself into the directory, and caches without end:
    /// store paths never change. The limit of open files is set before.
    fn argv(&self, run_dir: &Path) -> Result<Vec<String>, DriverError> {
        let (program, dir) = (utf8(&self.path)?, utf8(&run_dir.join(LIVE_STORE_DIR))?);
        let arguments = if self.of_qemu {
            // A comma separates options, unless a backslash comes before it.
            let dir = dir.replace('\\', "\\\\").replace(',', "\\,");
            let options = format!("source={dir},sandbox=chroot,cache=always,log_level=err");
            vec!["-f".into(), "--fd=0".into(), "--rlimit-nofile=0".into(), "-o".into(), options]
        } else {
            let words = ["--sandbox=chroot", "--cache=always", "--log-level=error", "--rlimit-nofile=0"];
            let shared = ["--fd=0".to_owned(), format!("--shared-dir={dir}")];
            shared.into_iter().chain(words.map(str::to_owned)).collect()
        };
        Ok([vec![program], arguments].concat())
    }
}

/// What the guard starts for a guest with this run directory that gets this closure live.
pub(super) fn live_store(closure: &Closure, run_dir: &Path) -> Result<LiveStore, DriverError> {
    let argv = Virtiofsd::find()?.argv(run_dir)?;
    let paths = closure.paths.iter().map(mount).collect::<Result<_, _>>()?;
    Ok(LiveStore { argv, paths })
}

fn mount(path: &ClosurePath) -> Result<StoreMount, DriverError> {
    Ok(StoreMount { source: utf8(&path.host_path)?, base_name: path.path.base_name().to_owned() })
}

fn utf8(path: &Path) -> Result<String, DriverError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("the name {} is no UTF-8, which a live store needs", path.display());
        DriverError::new(DriverErrorKind::Unusable, message)
            .hint("move calve's data to another directory (CALVE_HOME), or leave --store live out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_daemons_are_locked_into_the_closure() {
        for of_qemu in [true, false] {
            let daemon = Virtiofsd { path: "/v".into(), version: String::new(), of_qemu };
            let line = daemon.argv(Path::new("/run,dir")).unwrap().join(" ");
            let place = if of_qemu { "source=/run\\,dir/store," } else { "--shared-dir=/run,dir/store" };
            for part in [place, "/v ", "--fd=0", "sandbox=chroot", "cache=always", "--rlimit-nofile=0"] {
                assert!(line.contains(part), "{part} in {line}");
            }
        }
    }
}
