//! A stand-in for a NixOS: its toplevel keeps the same contract, with the host's kernel and a script for an init.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use calve_nix::StorePath;
use calve_node::Order;
use calve_node::kernel::host_kernel;
use calve_wire::machine::Workload;

use super::host::{BUSYBOX, HOUR, Host, chosen_kernel, images_dir};

const TOPLEVEL: &str = "1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-stand-in-system";
const LINUX: &str = "2c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-stand-in-linux";

/// Run in the new root before init, as a NixOS with a systemd initrd has it.
const PREPARE_ROOT: &str = r#"
[ "$IN_NIXOS_SYSTEMD_STAGE1" = true ] && $b touch /run/prepared
"#;
const INIT: &str = r#"
echo "init is process $$ of $($b hostname)"
echo "bus: $([ -e /sys/bus/pci/drivers/virtio-pci ] && echo pci)"
echo "prepared: $([ -e /run/prepared ] && echo true)"
echo "parameter: $($b grep -q ' stand-in=yes ' /proc/cmdline && echo yes)"
echo "store: $($b touch /nix/store/new && echo written)"
echo "root: $([ -e /calve-agent ] || [ -e /from-its-initrd ] || echo empty)"
for p in /proc/[0-9]*; do
    c=$($b tr '\0' ' ' < $p/cmdline)
    case "$c" in @*) echo "agent: $c"; break;; esac
done
while :; do $b sleep 1000; done
"#;

/// An order for a guest that boots the stand-in.
pub fn order(host: &Host, n: u128) -> Order {
    let dir = host.dir.path();
    linux(&dir.join(LINUX));
    toplevel(&dir.join(TOPLEVEL));
    let mut order = host.order(n, HOUR);
    let toplevel = StorePath::from_base_name(TOPLEVEL).expect("a base name");
    order.spec.workload = Workload::System { toplevel };
    order.closure.paths = [BUSYBOX, TOPLEVEL, LINUX].map(|base| host.path(base)).to_vec();
    order
}

fn toplevel(dir: &Path) {
    fs::create_dir_all(dir).expect("made");
    symlink(format!("/nix/store/{LINUX}/bzImage"), dir.join("kernel")).expect("made");
    symlink(format!("/nix/store/{LINUX}/initrd"), dir.join("initrd")).expect("made");
    symlink(format!("/nix/store/{LINUX}"), dir.join("kernel-modules")).expect("made");
    fs::write(dir.join("kernel-params"), "loglevel=3 stand-in=yes").expect("written");
    for (name, text) in [("init", INIT), ("prepare-root", PREPARE_ROOT)] {
        let shell = format!("/nix/store/{BUSYBOX}/bin/busybox");
        let script = format!("#!{shell} sh\nb={shell}\n{text}");
        fs::write(dir.join(name), script).expect("written");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).expect("set");
    }
}

/// The guests' kernel with the modules that guests need but for virtio-mmio, which takes a q35 machine in place of a microVM, and an initrd of its own that is as real as compressed ones are.
fn linux(dir: &Path) {
    let kernel = host_kernel(chosen_kernel().as_deref(), &images_dir()).expect("a kernel for guests");
    let modules = dir.join("lib/modules").join(kernel.facts.version);
    fs::create_dir_all(&modules).expect("made");
    fs::copy(kernel.file, dir.join("bzImage")).expect("copied");
    let from = kernel.modules.expect("its modules").path;
    for index in ["modules.dep", "modules.builtin", "modules.softdep", "modules.alias"] {
        let text = fs::read_to_string(from.join(index)).expect("there");
        let lines = text.lines().filter(|line| !line.contains("virtio_mmio")).map(|line| format!("{line}\n"));
        fs::write(modules.join(index), lines.collect::<String>()).expect("written");
    }
    for tree in ["drivers/virtio", "drivers/block", "drivers/char", "fs/erofs", "fs/overlayfs", "lib"] {
        let to = modules.join("kernel").join(tree);
        fs::create_dir_all(to.parent().expect("a tree")).expect("made");
        let copied = Command::new("cp").arg("-r").arg(from.join("kernel").join(tree)).arg(to).status();
        assert!(copied.expect("cp runs").success());
    }
    let script = format!(
        "cd {0} && touch from-its-initrd && echo from-its-initrd | /bin/busybox cpio -o -H newc 2>/dev/null | gzip > initrd \
         && rm from-its-initrd",
        dir.display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh runs").success());
}
