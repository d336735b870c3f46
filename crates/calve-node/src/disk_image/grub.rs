//! GRUB's files of the distribution, put together by its own `grub-mkimage` with a few commands inside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian and Ubuntu have the platforms (packages `grub-pc-bin` and `grub-efi-amd64-bin`).
const PLATFORMS: &str = "/usr/lib/grub";
/// What both need to read the partition and start Linux.
const MODULES: [&str; 5] = ["part_msdos", "fat", "search_label", "linux", "boot"];
/// What BIOS needs besides: disks through its interrupts.
const BIOS_MODULES: [&str; 1] = ["biosdisk"];

/// Why GRUB cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// A part is not there.
    #[error("{} is missing: install the packages grub-common, grub-pc-bin and grub-efi-amd64-bin, or say where they are unpacked", path.display())]
    Missing {
        /// What.
        path: PathBuf,
    },
    /// `grub-mkimage` failed.
    #[error("grub-mkimage failed: {0}")]
    Failed(String),
    /// A file cannot be read or written.
    #[error("GRUB's {path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its files are not what they should be.
    #[error("GRUB's first parts do not fit before the first partition")]
    Unexpected,
}

/// GRUB for both firmwares.
#[derive(Debug, Clone)]
pub struct Grub {
    mkimage: PathBuf,
    bios: PathBuf,
    uefi: PathBuf,
    scratch: PathBuf,
}

impl Grub {
    /// The distribution's, or the one whose packages were unpacked into `root`; `scratch` is a directory for its files.
    pub fn find(root: Option<&Path>, scratch: &Path) -> Result<Self, GrubError> {
        let under =
            |path: &str| root.map_or(PathBuf::from(path), |root| root.join(path.trim_start_matches('/')));
        let platforms = under(PLATFORMS);
        let found = Self {
            mkimage: under("/usr/bin/grub-mkimage"),
            bios: platforms.join("i386-pc"),
            uefi: platforms.join("x86_64-efi"),
            scratch: scratch.to_owned(),
        };
        for path in [&found.mkimage, &found.bios.join("boot.img"), &found.uefi.join("kernel.img")] {
            if !path.exists() {
                return Err(GrubError::Missing { path: path.clone() });
            }
        }
        Ok(found)
    }

    /// The first sector, and what follows it. The defaults of both are just that: the second lies behind the first.
    pub(super) fn for_bios(&self, commands: &str) -> Result<(Vec<u8>, Vec<u8>), GrubError> {
        let boot = self.bios.join("boot.img");
        let boot = fs::read(&boot).map_err(|source| GrubError::Io { path: boot, source })?;
        let modules = [&MODULES[..], &BIOS_MODULES].concat();
        Ok((boot, self.make("i386-pc", &self.bios, &modules, commands)?))
    }

    /// The program that UEFI starts.
    pub(super) fn for_uefi(&self, commands: &str) -> Result<Vec<u8>, GrubError> {
        self.make("x86_64-efi", &self.uefi, &MODULES, commands)
    }

    fn make(
        &self,
        platform: &str,
        dir: &Path,
        modules: &[&str],
        commands: &str,
    ) -> Result<Vec<u8>, GrubError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| GrubError::Io { path, source }
        };
        let config = self.scratch.join(format!("grub-{platform}.cfg"));
        fs::write(&config, commands).map_err(unusable(&config))?;
        let out = self.scratch.join(format!("grub-{platform}.img"));
        let mut command = Command::new(&self.mkimage);
        command.args(["--format", platform, "--prefix", "/grub"]).arg("--directory").arg(dir);
        command.arg("--config").arg(&config).arg("--output").arg(&out).args(modules);
        let output = command.output().map_err(unusable(&self.mkimage))?;
        if !output.status.success() {
            return Err(GrubError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        fs::read(&out).map_err(unusable(&out))
    }
}

/// What GRUB does, in the little language that it knows before it has read anything: no menu, no wait.
pub(super) fn commands(label: &str, parameters: &str) -> String {
    format!("search.fs_label {label} root\nlinux /vmlinuz {parameters}\ninitrd /initrd\nboot\n")
}
