//! The disk image that `calve image build` makes: booted from a disk by the firmware, with its user data on a volume, it joins.

mod door;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use agent_client::{Client, agent_program};
use calve_node::cloud_image::cloud_image;
use calve_node::disk_image::{self, Format, Grub, Volume};
use calve_node::initrd::static_busybox;
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Remaining, ToAgent};
use calve_wire::machine::Restart;
use door::Door;
use e2e::emulator;

/// Longest wait for a guest: the firmware reads fifteen megabytes in emulation before the kernel begins.
const PATIENCE: Duration = Duration::from_secs(240);
/// This host as QEMU's user network shows it (QEMU `docs/system/devices/net.rst`).
const HOST_FROM_GUEST: &str = "10.0.2.2";
/// Where Debian's package `ovmf` has the firmware.
const UEFI: &str = "/usr/share/OVMF/OVMF_CODE.fd";

/// Killed when it is dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The image; none, and why, where this host has no GRUB.
fn image(dir: &Path, format: Format) -> Option<PathBuf> {
    let images = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    std::fs::create_dir_all(&images).unwrap();
    let unpacked = std::env::var_os("CALVE_GRUB").map(PathBuf::from);
    let grub = match Grub::find(unpacked.as_deref(), dir) {
        Ok(grub) => grub,
        Err(error) => {
            println!("left out: {error}");
            return None;
        }
    };
    let kernel = std::env::var_os("CALVE_KERNEL").map(PathBuf::from);
    let busybox = static_busybox();
    let image = cloud_image(kernel.as_deref(), &agent_program(), busybox.as_deref(), &images).unwrap();
    let path = dir.join("base");
    disk_image::write(&image, &grub, format, &path).unwrap();
    Some(path)
}

fn boot(dir: &Path, image: &Path, format: &str, firmware: &[&str], user_data: String) -> Qemu {
    let volume = dir.join("cidata");
    let mut files = Volume::new("cidata");
    files.file("meta-data", b"instance-id: x\n".to_vec());
    files.file("user-data", user_data.into_bytes());
    File::create(&volume).unwrap().write_all(&files.to_bytes().unwrap()).unwrap();
    let mut command = emulator("pc", 256, &dir.join("console"));
    command.arg("-no-reboot");
    command.args(firmware).args(["-snapshot"]);
    command.args(["-drive", &format!("file={},format={format},if=virtio", image.display())]);
    command.args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", volume.display())]);
    command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    Qemu(command.spawn().unwrap())
}

async fn joins(dir: &Path, image: &Path, format: &str, firmware: &[&str]) {
    let mut door = Door::open().await;
    let _qemu = boot(dir, image, format, firmware, door.user_data(HOST_FROM_GUEST, None));
    let console = || {
        let mut text = Vec::new();
        let _ = File::open(dir.join("console")).and_then(|mut file| file.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    };
    let connected = tokio::time::timeout(PATIENCE, door.connections.recv()).await;
    let link = connected.unwrap_or_else(|_| panic!("nobody dials: {}", console())).unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut client = Client::new(link.into());
        client.until(Client::is_connected);
        client.preamble();
        let remaining = Remaining { until_deadline_ms: None, grace_ms: 0 };
        client.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq: 0, remaining });
        client.until(|client| client.welcome.is_some());
        // Nobody listens, nobody has a password, and the agent's key is its own.
        let script = "hostname; cat /etc/resolv.conf; grep -c ' 0A ' /proc/net/tcp; ls /etc/shadow 2>/dev/null; \
                      stat -c %a /run/calve-agent.key; exit 7";
        client.start(script, Restart::Never);
        let ended = client.until_ended();
        client.until_output();
        (ended.last_exit.and_then(|exit| exit.code), client.text())
    });
    let (code, text) = said.await.unwrap();
    assert_eq!((code, text.as_str()), (Some(7), "run-1\nnameserver 10.0.2.3\n0\n600\n"), "{}", console());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_boots_by_bios_finds_its_volume_and_joins_by_dhcp() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = image(dir.path(), Format::Qcow2) else { return };
    joins(dir.path(), &image, "qcow2", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_boots_by_uefi_as_well() {
    let firmware = std::env::var("CALVE_UEFI").unwrap_or_else(|_| UEFI.to_owned());
    if !Path::new(&firmware).exists() {
        return println!("left out: there is no {firmware}, of the package ovmf");
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = image(dir.path(), Format::Raw) else { return };
    let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={firmware}");
    joins(dir.path(), &image, "raw", &["-drive", &code]).await;
}
