//! What a system's closure brings to boot itself (nixpkgs `nixos/modules/system/activation/top-level.nix`).

use std::io;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;

use super::{ClosureView, Kernel, KernelError, ModuleDir, prepare};

/// A system ready to boot.
#[derive(Debug, Clone)]
pub struct System {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk, on this host.
    pub initrd: PathBuf,
    /// Its kernel parameters, as its boot loader would give them.
    pub params: Vec<String>,
    /// Its toplevel, as the machine sees it.
    pub toplevel: String,
}

/// Reads what a toplevel says and makes its kernel ready.
///
/// # Errors
/// Where something of `kernel`, `initrd`, `init`, `kernel-params` is missing or leads out of the closure.
pub fn system(toplevel: &StorePath, view: &ClosureView, images_dir: &Path) -> Result<System, KernelError> {
    let top = PathBuf::from(toplevel.to_string());
    let find = |what: &str| {
        let missing = |source| KernelError::NoSystem { what: format!("{toplevel}/{what}"), source };
        view.resolve(&top.join(what)).and_then(|path| path.metadata().map(|_| path)).map_err(missing)
    };
    find("init")?;
    let (file, initrd, params) = (find("kernel")?, find("initrd")?, find("kernel-params")?);
    let params = std::fs::read_to_string(&params).map_err(|source| KernelError::NoSystem {
        what: format!("a readable {toplevel}/kernel-params"),
        source,
    })?;
    let kernel = prepare(&file, modules(&top, view), None, images_dir)?;
    let params = params.split_ascii_whitespace().map(str::to_owned).collect();
    Ok(System { kernel, initrd, params, toplevel: toplevel.to_string() })
}

/// The directory of the one kernel whose modules the system has; none where it has none (everything is built in).
fn modules(top: &Path, view: &ClosureView) -> Option<ModuleDir> {
    let logical = top.join("kernel-modules/lib/modules");
    let on_host = view.resolve(&logical).ok()?;
    let names = on_host.read_dir().ok()?.flatten().map(|entry| entry.file_name());
    let with_index = |name: &std::ffi::OsString| -> io::Result<PathBuf> {
        view.resolve(&logical.join(name).join("modules.dep"))
    };
    let name = names.into_iter().find(|name| with_index(name).is_ok())?;
    Some(ModuleDir { path: logical.join(name), view: view.clone() })
}
