//! A whole system with systemd that is reached over SSH: adopted, switched, tried at a boot, given back. `CALVE_GUESTS=1`.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use e2e::{Home, Ran, standin};
use systems::GUEST_PATIENCE;

struct Stage {
    home: Home,
    dir: tempfile::TempDir,
    client: PathBuf,
    /// Of this host, behind which the guest's sshd is.
    port: u16,
    second: String,
    qemu: Child,
}

impl Stage {
    fn boot() -> Self {
        let dir = tempfile::Builder::new().prefix("calve-guest-ssh-").tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sshd")).expect("a directory");
        hosts::make_key(&at("key"));
        hosts::make_key(&at("sshd/host_key"));
        std::fs::copy(at("key.pub"), at("sshd/authorized_keys")).expect("copied");
        std::fs::copy(hosts::sshd(), at("sshd/sshd")).expect("copied");
        let first = standin("build", &[]);
        let second = standin("variant", &[&first, "two"]);
        let switch = systems::program();
        standin("disk", &[dir.path().to_str().unwrap(), switch.to_str().unwrap(), "-", &first, &second]);
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let mut qemu = systems::guest(dir.path());
        systems::add_disk(&mut qemu, dir.path());
        systems::boot_by_standin(&mut qemu, dir.path(), &first);
        qemu.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.args(["-device", "virtio-net-pci,netdev=net"]);
        let qemu = qemu.spawn().expect("QEMU starts");
        let key = std::fs::read_to_string(at("sshd/host_key.pub")).expect("a key");
        std::fs::write(at("known_hosts"), format!("[127.0.0.1]:{port} {key}")).expect("written");
        let client = hosts::write_client(dir.path(), "");
        Self { home: Home::alone(), dir, client, port, second, qemu }
    }

    fn calve(&self, arguments: &[&str]) -> Ran {
        Ran::of(hosts::calve(&self.home, &self.client, arguments.iter().copied()))
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
                begun.elapsed() < GUEST_PATIENCE,
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
