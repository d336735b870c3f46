//! The kernel that guests boot where their closure brings none: the host's own, or the one that `CALVE_KERNEL` names.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use super::{ClosureView, Kernel, KernelError, ModuleDir, image, prepare};

/// Names a kernel file (bzImage or ELF) for guests.
pub const KERNEL_VARIABLE: &str = "CALVE_KERNEL";

/// Finds the host's kernel for guests: `chosen` (what [`KERNEL_VARIABLE`] holds), else the best of `/boot/vmlinuz-*`.
///
/// # Errors
/// Where there is none, one sentence that says what was looked at.
pub fn host_kernel(chosen: Option<&Path>, images_dir: &Path) -> Result<Kernel, KernelError> {
    match chosen {
        Some(file) => chosen_kernel(file, images_dir),
        None => best_of(Path::new("/boot"), Path::new(MODULES_DIR), images_dir),
    }
}

/// Where the host has the modules of its kernels.
const MODULES_DIR: &str = "/lib/modules";

/// A kernel that somebody chose may have everything built in: modules are taken where they are found, the host's or those of
/// the tree that the kernel lies in, as a package has both (`TREE/boot/vmlinuz-V`, `TREE/lib/modules/V`).
fn chosen_kernel(file: &Path, images_dir: &Path) -> Result<Kernel, KernelError> {
    let unreadable = |source| KernelError::Unreadable { path: file.to_owned(), source };
    let file = file.canonicalize().map_err(unreadable)?;
    let beside = file.ancestors().nth(2).map(|tree| tree.join("lib/modules"));
    let modules_of = |version: &str| {
        let dir = module_dir(Path::new(MODULES_DIR), version);
        dir.or_else(|| module_dir(beside.as_deref()?, version))
    };
    let version = match release_in_name(&file) {
        Some(version) if modules_of(&version).is_some() => version,
        _ => {
            let bytes = std::fs::read(&file).map_err(unreadable)?;
            image::open(&bytes).map_err(|why| KernelError::Unfit { path: file.clone(), why })?.version
        }
    };
    let mut config = file.clone().into_os_string();
    config.push(".config");
    let config = std::fs::read_to_string(config).ok().or_else(|| config_of(file.parent()?, &version));
    prepare(&file, modules_of(&version), config.as_deref(), images_dir)
}

fn best_of(boot: &Path, modules: &Path, images_dir: &Path) -> Result<Kernel, KernelError> {
    let (mut candidates, mut why_not) = (Vec::new(), Vec::new());
    let entries = std::fs::read_dir(boot)
        .map_err(|source| KernelError::Unreadable { path: boot.to_owned(), source })?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(version) = release_in_name(&path) else { continue };
        match (std::fs::File::open(&path), module_dir(modules, &version)) {
            (Ok(_), Some(dir)) => candidates.push((version, path, dir)),
            (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => {
                why_not.push(format!("{} may not be read by this user", path.display()));
            }
            (Err(error), _) => why_not.push(format!("{}: {error}", path.display())),
            (_, None) => why_not.push(format!("{} has no modules in {}", path.display(), modules.display())),
        }
    }
    candidates.sort_by(|a, b| by_fitness(&a.0, &b.0));
    let Some((version, path, dir)) = candidates.pop() else {
        let looked = if why_not.is_empty() {
            format!("there is no {}/vmlinuz-*", boot.display())
        } else {
            why_not.join("; ")
        };
        return Err(KernelError::NotFound(looked));
    };
    prepare(&path, Some(dir), config_of(boot, &version).as_deref(), images_dir)
}

/// Cloud kernels are made for guests and boot faster; among equals the newest is the best.
fn by_fitness(a: &str, b: &str) -> Ordering {
    let cloud =
        |version: &str| version.contains("cloud") || version.contains("kvm") || version.contains("virt");
    cloud(a).cmp(&cloud(b)).then_with(|| by_version(a, b))
}

/// Numbers in versions compare as numbers: 6.10 is newer than 6.9.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| -> Vec<(u64, String)> {
        let pieces = version.split(|c: char| !c.is_ascii_alphanumeric());
        pieces.map(|piece| (piece.parse().unwrap_or(0), piece.to_owned())).collect()
    };
    parts(a).cmp(&parts(b))
}

fn release_in_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-")).map(str::to_owned)
}

fn module_dir(root: &Path, version: &str) -> Option<ModuleDir> {
    let path = root.join(version);
    path.join("modules.dep").exists().then(|| ModuleDir { path, view: ClosureView::default() })
}

fn config_of(dir: &Path, version: &str) -> Option<String> {
    std::fs::read_to_string(PathBuf::from(dir).join(format!("config-{version}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloud_kernels_win_and_then_the_newest() {
        let mut versions = ["6.10.0-1-amd64", "6.1.0-56-cloud-amd64", "6.9.0-9-amd64", "6.1.0-9-cloud-amd64"];
        versions.sort_by(|a, b| by_fitness(a, b));
        let order = ["6.9.0-9-amd64", "6.10.0-1-amd64", "6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64"];
        assert_eq!(versions, order);
    }

    #[test]
    fn a_host_without_a_kernel_is_told_what_was_looked_at() {
        let dir = std::env::temp_dir().join(format!("calve-host-kernel-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let error = best_of(&dir, &dir, &dir).unwrap_err().to_string();
        assert!(error.contains("there is no"), "{error}");
        std::fs::write(dir.join("vmlinuz-1"), "x").unwrap();
        let error = best_of(&dir, &dir, &dir).unwrap_err().to_string();
        assert!(error.contains("vmlinuz-1 has no modules"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
