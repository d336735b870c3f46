//! QEMU on this host.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::driver::{DriverError, DriverErrorKind};

/// The program, looked up in `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";
/// The small firmware for microVMs.
const QBOOT: &str = "qboot.rom";
/// What to do where there is none.
pub(super) const INSTALL_HINT: &str = "install it: `apt-get install qemu-system-x86` (Debian, Ubuntu), `dnf install qemu-system-x86-core` (Fedora), \
     `nix profile install nixpkgs#qemu`";

/// An installed QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emulator {
    /// The program.
    pub path: PathBuf,
    /// What it says of its version.
    pub version: String,
    /// Whether it comes with qboot.
    pub qboot: bool,
}

impl Emulator {
    /// Finds it.
    pub(super) async fn find() -> Result<Self, DriverError> {
        let path = in_path(PROGRAM).ok_or_else(|| {
            DriverError::new(DriverErrorKind::Unusable, format!("{PROGRAM} is not installed"))
                .hint(INSTALL_HINT)
        })?;
        let failed =
            || DriverError::new(DriverErrorKind::Unusable, format!("{} does not run", path.display()));
        let output =
            Command::new(&path).arg("--version").output().await.map_err(|error| failed().caused_by(error))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next().filter(|_| output.status.success()).map(str::to_owned);
        let version = version.ok_or_else(|| failed().hint(INSTALL_HINT))?;
        let qboot = has_firmware(&path, QBOOT);
        Ok(Self { path, version, qboot })
    }
}

/// A program in `PATH`.
pub(super) fn in_path(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(executable)
}

/// Firmware lies under the prefix of the program, or where distributions put it.
fn has_firmware(program: &Path, name: &str) -> bool {
    let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let dirs = [prefix.join("share/qemu"), "/usr/share/qemu".into(), "/usr/share/seabios".into()];
    dirs.iter().any(|dir| dir.join(name).exists())
}
