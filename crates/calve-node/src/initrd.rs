//! The initial ramdisk of a guest: the agent, the modules that the machine's devices need, and nothing else.
//!
//! ```text
//!  [the system's own initrd]  calve-agent  calve/modules/{list,00-….ko,…}  [bin/busybox bin/sh …]
//! ```
//! The kernel unpacks concatenated archives one over the other (Linux `Documentation/driver-api/early-userspace/`), so a
//! system's own initrd stays as it is. Made once for each set of inputs and kept.

mod cpio;
mod elf;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::Archive;

use crate::images;
use crate::kernel::{Kernel, Modules};

/// Changes when what stands in an initrd changes.
const INITRD_FORMAT: &str = "initrd 3";
/// Where the agent finds what to load; one file name a line.
const MODULE_LIST: &str = "calve/modules/list";
/// Largest module after decompression: the largest in distribution kernels (`amdgpu`, with debug data) have 30 MB.
const MODULE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What goes into an initrd.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The kernel, for its modules.
    pub kernel: &'a Kernel,
    /// Modules by name, in the order in which they are needed; built-in ones are left out.
    pub modules: &'a [&'a str],
    /// The agent's static binary.
    pub agent: &'a Path,
    /// A static busybox, for a guest that holds nothing else.
    pub busybox: Option<&'a Path>,
    /// The system's own initrd, which comes first.
    pub system: Option<&'a Path>,
}

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot do what the machine needs.
    #[error("the kernel {version} has no {module}")]
    NoModule {
        /// Its release.
        version: String,
        /// The module.
        module: String,
    },
    /// The agent is linked dynamically: a guest holds no libraries.
    #[error("{0} is not a static program")]
    NotStatic(PathBuf),
    /// The initrd cannot be written.
    #[error("the initrd {path} cannot be written")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The initrd with these contents, in `images_dir`; made where it does not exist yet.
pub fn initrd(contents: &Contents<'_>, images_dir: &Path) -> Result<PathBuf, InitrdError> {
    let mut parts = vec![INITRD_FORMAT.to_owned(), contents.kernel.key.clone(), contents.modules.join(" ")];
    for path in [Some(contents.agent), contents.busybox, contents.system] {
        parts.push(
            path.map_or(Ok(String::new()), images::identity).map_err(|source| unreadable(path, source))?,
        );
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let path = images_dir.join(format!("initrd-{}", images::key(&parts)));
    if path.exists() {
        return Ok(path);
    }
    let own = archive(contents)?;
    let system = match contents.system {
        Some(file) => read(file)?,
        None => Vec::new(),
    };
    // An archive begins at a multiple of four bytes; zeros between archives are skipped.
    let padding = vec![0; system.len().next_multiple_of(4) - system.len()];
    images::write(&path, &[&system, &padding, &own])
        .map_err(|source| InitrdError::Unwritable { path: path.clone(), source })?;
    Ok(path)
}

/// A static busybox of this host, where it has one.
pub fn static_busybox() -> Option<PathBuf> {
    let path = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/lib/busybox/bin/busybox"];
    path.into_iter()
        .map(PathBuf::from)
        .find(|path| std::fs::read(path).is_ok_and(|bytes| elf::is_static(&bytes)))
}

fn archive(contents: &Contents<'_>) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Archive::new();
    let mut agent = read(contents.agent)?;
    if !elf::is_static(&agent) {
        return Err(InitrdError::NotStatic(contents.agent.to_owned()));
    }
    elf::strip(&mut agent);
    archive.file("calve-agent", 0o755, &agent);
    if contents.system.is_none() {
        archive.link("init", "calve-agent");
    }
    archive.directory("calve", 0o755);
    archive.directory("calve/modules", 0o755);
    add_modules(contents, &mut archive)?;
    if let Some(busybox) = contents.busybox {
        archive.directory("bin", 0o755);
        archive.file("bin/busybox", 0o755, &read(busybox)?);
        for applet in applets(busybox) {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
    }
    Ok(archive.finish())
}

fn add_modules(contents: &Contents<'_>, archive: &mut Archive) -> Result<(), InitrdError> {
    let dir = contents.kernel.modules.as_ref();
    let index = match dir {
        Some(dir) => Modules::read(dir).map_err(|source| unreadable(Some(&dir.path), source))?,
        None => Modules::all_built_in(),
    };
    let (files, missing) = index.load_order(contents.modules);
    if let Some(module) = missing.into_iter().next() {
        return Err(InitrdError::NoModule { version: contents.kernel.facts.version.clone(), module });
    }
    let mut list = String::new();
    for (n, (dir, file)) in files.iter().filter_map(|file| Some((dir?, file))).enumerate() {
        let logical = dir.path.join(file);
        let path = dir.view.resolve(&logical).map_err(|source| unreadable(Some(&logical), source))?;
        let bytes = decompressed(&read(&path)?, file).map_err(|source| unreadable(Some(&path), source))?;
        let name = format!("{n:02}-{}.ko", crate::kernel::normal_name(file));
        archive.file(&format!("calve/modules/{name}"), 0o644, &bytes);
        list.push_str(&name);
        list.push('\n');
    }
    archive.file(MODULE_LIST, 0o644, list.as_bytes());
    Ok(())
}

/// A module as the kernel takes it: guests need not decompress in emulation, and not all kernels can.
fn decompressed(bytes: &[u8], file: &str) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let reader: Box<dyn io::Read + '_> = match file.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(bytes)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(bytes)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(bytes)),
        _ => Box::new(bytes),
    };
    if reader.take(MODULE_MAX_BYTES + 1).read_to_end(&mut out)? as u64 > MODULE_MAX_BYTES {
        return Err(io::Error::other(format!("a module of more than {MODULE_MAX_BYTES} bytes")));
    }
    Ok(out)
}

/// What this busybox can be called; `sh` at least.
fn applets(busybox: &Path) -> Vec<String> {
    let listed = Command::new(busybox).arg("--list").output().map(|output| output.stdout).unwrap_or_default();
    let mut names: Vec<String> = String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect();
    names.retain(|name| !name.is_empty() && !name.contains('/') && name != "busybox");
    if !names.iter().any(|name| name == "sh") {
        names.push("sh".into());
    }
    names
}

fn read(path: &Path) -> Result<Vec<u8>, InitrdError> {
    std::fs::read(path).map_err(|source| unreadable(Some(path), source))
}

fn unreadable(path: Option<&Path>, source: io::Error) -> InitrdError {
    InitrdError::Unreadable { path: path.map(Path::to_owned).unwrap_or_default(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn modules_are_decompressed_by_their_ending() {
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(b"module").unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"module").unwrap();
        let packed = [
            ("a.ko", b"module".to_vec()),
            ("a.ko.xz", xz.finish().unwrap()),
            ("a.ko.gz", gz.finish().unwrap()),
            ("a.ko.zst", zstd::encode_all(&b"module"[..], 1).unwrap()),
        ];
        for (name, bytes) in packed {
            assert_eq!(decompressed(&bytes, name).unwrap(), b"module", "{name}");
        }
        assert!(decompressed(b"no", "a.ko.xz").is_err());
    }
}
