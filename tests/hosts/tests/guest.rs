//! A whole system with systemd that is reached over SSH: adopted, switched, tried at a boot, given back. `CALVE_GUESTS=1`.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{Home, Ran, standin};

/// How long anything may take in emulation on a busy host.
const PATIENCE: Duration = Duration::from_secs(400);
/// The processor that emulation shows.
const CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand";

struct Stage {
    home: Home,
    dir: tempfile::TempDir,
    /// Of this host, behind which the guest's sshd is.
    port: u16,
    second: String,
    qemu: Child,
}

impl Stage {
    fn boot() -> Self {
        let dir = tempfile::Builder::new().prefix("calve-guest-ssh-").tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        hosts::make_key(&at("key"));
        hosts::make_key(&at("host_key"));
        std::fs::copy(at("key.pub"), at("authorized_keys")).expect("copied");
        let first = standin("build", &[]);
        let second = standin("variant", &[&first, "two"]);
        let mut disk = Command::new(standin_script("disk"));
        disk.args([dir.path().to_str().unwrap(), systems::program().to_str().unwrap(), "-", &first, &second]);
        disk.env("STANDIN_SSHD", hosts::sshd()).env("STANDIN_SSH_KEYS", dir.path());
        assert!(disk.status().expect("it runs").success());
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let qemu = qemu(dir.path(), &first, port).spawn().expect("QEMU starts");
        let stage = Self { home: Home::alone(), dir, port, second, qemu };
        stage.write_client();
        stage
    }

    /// A client that knows the host's key and uses nothing of this machine's user.
    fn write_client(&self) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let key = std::fs::read_to_string(at("host_key.pub")).expect("a key");
        std::fs::write(at("known_hosts"), format!("[127.0.0.1]:{} {key}", self.port)).expect("written");
        let config = format!(
            "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {}\n  \
             GlobalKnownHostsFile /dev/null\n",
            at("key"),
            at("known_hosts")
        );
        std::fs::write(at("config"), config).expect("written");
        std::fs::write(at("ssh"), format!("#!/bin/sh\nexec ssh -F '{}' \"$@\"\n", at("config")))
            .expect("written");
        std::fs::set_permissions(at("ssh"), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    }

    fn calve(&self, arguments: &[&str]) -> Ran {
        let mut command = self.home.command(arguments.iter().copied());
        command.env("CALVE_SSH", self.dir.path().join("ssh")).env("USER", "tester");
        command.env("CALVE_AGENT", hosts::agent()).env_remove("CALVE_SWITCH");
        Ran::of(command)
    }

    fn sh(&self, script: &str) -> Ran {
        self.calve(&["exec", "web", "--", "sh", "-c", script])
    }

    /// Waits until a command's output is as wished.
    #[track_caller]
    fn wait_until(&self, what: &str, mut wished: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !wished() {
            let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
            assert!(
                begun.elapsed() < PATIENCE,
                "waited in vain for {what}\n{}",
                String::from_utf8_lossy(&console)
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    #[track_caller]
    fn wait_for_version(&self, version: &str) {
        self.wait_until(&format!("version {version}"), || {
            self.sh("cat /run/standin-version").stdout.trim() == version
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn standin_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../standin").join(name)
}

fn qemu(dir: &Path, system: &str, port: u16) -> Command {
    // Also a test that is killed leaves none behind.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    command.args(["-machine", "q35,accel=tcg", "-cpu", CPU, "-smp", "1", "-m", "768M"]);
    command.args(["-kernel", &format!("{system}/kernel"), "-initrd"]).arg(dir.join("boot-initrd"));
    command.args(["-append", "console=ttyS0 loglevel=4 systemd.show_status=0"]);
    command.args(["-serial", &format!("file:{}", dir.join("console").display())]);
    // What is written goes to a file of its own, which a restart of the guest outlives.
    let disk = dir.join("disk");
    let drive = format!("file={},if=none,id=disk,format=raw,snapshot=on,cache=unsafe", disk.display());
    command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
    command.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22")]);
    command.args(["-device", "virtio-net-pci,netdev=net"]);
    command.env("TMPDIR", dir).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[test]
fn a_system_with_systemd_is_adopted_switched_tried_at_a_boot_and_given_back() {
    if !systems::runs_guests() {
        return;
    }
    let stage = Stage::boot();
    let host = format!("ssh://root@127.0.0.1:{}", stage.port);
    stage.wait_until("the host to be adopted", || {
        stage.calve(&["adopt", &host, "--name", "web", "--ttl", "none"]).code == 0
    });
    assert_eq!(stage.sh("cat /proc/1/comm").stdout, "systemd\n");
    stage.wait_for_version("standin");
    let health = "systemctl is-active standin.service";
    let options = ["--health", health, "--confirm", "5m"];
    let switched = stage.calve(&[&["switch", "web", stage.second.as_str()], &options[..]].concat());
    assert_eq!(switched.code, 0, "{switched:?}");
    stage.wait_for_version("two");
    // Back to the first one, which is tried at the next boot.
    let rolled_back = stage.calve(&["rollback", "web", "--confirm", "5m"]);
    assert_eq!(rolled_back.code, 0, "{rolled_back:?}");
    stage.wait_for_version("standin");
    let set = stage.calve(&["switch", "web", &stage.second, "--action", "boot", "--confirm", "5m"]);
    assert!(set.code == 0 && set.stdout.contains("at its next boot"), "{set:?}");
    stage.sh("systemctl --no-block reboot");
    stage.wait_for_version("two");
    stage.wait_until("the boot to be confirmed", || {
        let drift = stage.calve(&["drift", "web"]);
        drift.code == 0 && stage.calve(&["history", "web"]).stdout.matches("applied").count() == 3
    });
    let removed = stage.calve(&["rm", "web"]);
    assert_eq!(removed.code, 0, "{removed:?}");
}
