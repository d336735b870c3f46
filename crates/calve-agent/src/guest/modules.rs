//! Loads the kernel modules that the host packed, in its order.

use std::fs::{self, File};

/// Where the host puts them; `list` names the files in order.
const DIR: &str = "/calve/modules";

/// Loads all of them. One that does not load is only noted: what it was for says more clearly that it is missing.
pub(super) fn load_all() -> Vec<String> {
    let list = fs::read_to_string(format!("{DIR}/list")).unwrap_or_default();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut notes = Vec::new();
    for file in list.lines() {
        let parameters = parameters_of(file, &command_line);
        let loaded = File::open(format!("{DIR}/{file}")).and_then(|module| {
            let parameters = std::ffi::CString::new(parameters)?;
            match rustix::system::finit_module(&module, &parameters, 0) {
                Err(rustix::io::Errno::EXIST) => Ok(()),
                loaded => Ok(loaded?),
            }
        });
        if let Err(error) = loaded {
            notes.push(format!("the kernel module {file} could not be loaded: {error}"));
        }
    }
    notes
}

/// What the command line says to a module, `module.parameter=value`: for QEMU's `virtio_mmio.device=` above all.
fn parameters_of(file: &str, command_line: &str) -> String {
    let name = file.split_once('-').map_or(file, |(_, name)| name).trim_end_matches(".ko");
    let ours = |word: &str| {
        let (module, parameter) = word.split_once('.')?;
        (module.replace('-', "_") == name).then(|| parameter.to_owned())
    };
    command_line.split_ascii_whitespace().filter_map(ours).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_gets_its_own_parameters() {
        let line =
            "quiet virtio_mmio.device=512@0xd0000000:5 calve.mode=bare virtio-mmio.device=512@0xd0000200:6\n";
        let parameters = parameters_of("02-virtio_mmio.ko", line);
        assert_eq!(parameters, "device=512@0xd0000000:5 device=512@0xd0000200:6");
        assert_eq!(parameters_of("03-virtio_blk.ko", line), "");
    }
}
