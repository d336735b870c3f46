//! A real system on a disk, with a boot loader: restarts that nobody asked for, and systems that are tried once. The guest is
//! cut off, the way users' hosts are when it matters; only a port of its shell reaches it. The boot loader is the stand-in's own, or
//! systemd-boot under a firmware, with variables that outlive a restart.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use calve_wire::system::{HostOrder, HostSwitch, SWITCH_VERSION, SwitchAction, SwitchOutcome, SwitchStage};
use e2e::standin;
use systems::GUEST_PATIENCE;

const PROGRAM: &str = "/var/lib/calve/switch/calve-switch";

/// A firmware with UEFI, and its variables as they are at first: those of Debian's package `ovmf`.
const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

struct Built {
    first: String,
    second: String,
    dir: PathBuf,
}

/// What boots the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loader {
    /// The stand-in's.
    Emulated,
    /// systemd-boot, by a firmware.
    Real,
}

/// The disk from which every guest begins, made once for each run of the tests.
fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let first = standin("build", &[]);
        let second = standin("variant", &[&first, "two"]);
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("systems-disk");
        std::fs::create_dir_all(&dir).expect("a directory");
        standin("disk", &[dir.to_str().unwrap(), systems::program().to_str().unwrap(), "-", &first, &second]);
        Built { first, second, dir }
    })
}

/// The disk with the boot partition of a real boot loader.
fn boot_partition(built: &Built) -> PathBuf {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        standin("boot-partition", &[built.dir.to_str().unwrap(), &built.first]);
    });
    built.dir.join("boot")
}

struct Guest {
    built: &'static Built,
    dir: tempfile::TempDir,
    qemu: Child,
    line: UnixStream,
    /// How many switches were begun.
    switches: u32,
}

impl Guest {
    fn boot(loader: Loader) -> Self {
        let built = built();
        let dir = tempfile::Builder::new().prefix("calve-boots-").tempdir().expect("a directory");
        let mut qemu = systems::guest(dir.path());
        let socket = dir.path().join("line");
        qemu.args(["-chardev", &format!("socket,id=line,path={},server=on,wait=off", socket.display())]);
        qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=line"]);
        systems::add_disk(&mut qemu, &built.dir);
        match loader {
            Loader::Emulated => systems::boot_by_standin(&mut qemu, &built.dir, &built.first),
            Loader::Real => {
                let [code, variables] = FIRMWARE;
                let own = dir.path().join("variables");
                std::fs::copy(variables, &own).expect("the package ovmf is installed");
                let flash = |file: &str, more: &str| format!("if=pflash,format=raw,file={file}{more}");
                qemu.args(["-drive", &flash(code, ",readonly=on")]);
                qemu.args(["-drive", &flash(own.to_str().unwrap(), "")]);
                let boot = boot_partition(built);
                let drive = format!("file={},if=none,id=boot,format=raw,snapshot=on", boot.display());
                qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=boot,bootindex=1"]);
            }
        }
        let qemu = qemu.spawn().expect("QEMU starts");
        e2e::wait_until("QEMU to listen", || socket.exists());
        let line = UnixStream::connect(socket).expect("it listens");
        line.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut guest = Self { built, dir, qemu, line, switches: 0 };
        guest.wait_for_version("standin");
        if loader == Loader::Real {
            let named = guest
                .sh("cat /sys/firmware/efi/efivars/LoaderInfo-* | busybox tr -d '\\0'")
                .expect("an answer");
            assert!(named.contains("systemd-boot"), "{named}");
        }
        guest
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("console")).unwrap_or_default())
            .into_owned()
    }

    /// Runs a line in the guest's shell; none where it does not answer soon, because it restarts.
    fn sh(&mut self, line: &str) -> Option<String> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // The mark is made of two halves, so that an echo of the line is none.
        let text = format!("\n{{ {line}\n}} 2>&1; echo \"en\"\"d-{number}-\"\n");
        self.line.write_all(text.as_bytes()).ok()?;
        let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
        let until = Instant::now() + Duration::from_secs(40);
        while Instant::now() < until {
            match self.line.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => said.extend_from_slice(&bytes[..count]),
                Err(_) => {}
            }
            let text = String::from_utf8_lossy(&said);
            if let Some(end) = text.find(&format!("end-{number}-")) {
                return Some(text[..end].trim().to_owned());
            }
        }
        None
    }

    #[track_caller]
    fn wait_until(&mut self, what: &str, mut wished: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !wished(self) {
            assert!(start.elapsed() < GUEST_PATIENCE, "waited in vain for {what}\n{}", self.console());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    #[track_caller]
    fn wait_for_version(&mut self, version: &str) {
        self.wait_until(&format!("version {version}"), |guest| {
            guest.sh("cat /run/standin-version").is_some_and(|said| said.ends_with(version))
        });
    }

    fn status(&mut self) -> Option<HostSwitch> {
        let said = self.sh(&format!("{PROGRAM} status"))?;
        serde_json::from_str(said.lines().find(|line| line.starts_with('{'))?).ok()
    }

    #[track_caller]
    fn wait_for(&mut self, stage: SwitchStage) -> HostSwitch {
        let mut found = None;
        self.wait_until(&format!("{stage:?}"), |guest| {
            found = guest.status().filter(|switch| switch.stage == stage);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// A host begins a switch of the same id only once.
    fn next_switch(&mut self) -> String {
        self.switches += 1;
        self.switch()
    }

    /// The id of the last switch.
    fn switch(&self) -> String {
        format!("switch-{}", self.switches)
    }

    fn begin(&mut self, action: SwitchAction, confirm_ms: u64) {
        let order = HostOrder {
            version: SWITCH_VERSION,
            id: self.next_switch(),
            toplevel: self.built.second.clone(),
            action,
            health: None,
            confirm_ms,
            generation: None,
            by: "uid:0".to_owned(),
            incoming: None,
        };
        let json = serde_json::to_string(&order).expect("plain data");
        let said = self.sh(&format!("echo '{json}' | {PROGRAM} begin"));
        assert!(
            said.as_ref().is_some_and(|said| said.contains("\"answer\":\"done\"")),
            "{said:?}\n{}",
            self.console()
        );
    }

    /// The systems that were booted, in order.
    fn booted(&self) -> Vec<String> {
        let console = self.console();
        let lines = console.lines().filter_map(|line| line.trim().strip_prefix("boot loader: "));
        lines.filter_map(|line| Some(line.split_once(' ')?.1.trim_end_matches("/init").to_owned())).collect()
    }

    #[track_caller]
    fn assert_back(&mut self) {
        let ended = self.wait_for(SwitchStage::Ended);
        assert_eq!(ended.outcome, Some(SwitchOutcome::RolledBack), "{ended:?}");
        self.wait_for_version("standin");
        let links = self.sh("readlink /run/current-system; readlink /nix/var/nix/profiles/system; cat /boot/loader/loader.conf");
        let links = links.expect("an answer");
        assert!(links.contains(&self.built.first) && links.contains("system-1-link"), "{links}");
        assert!(links.contains("default nixos-generation-1.conf"), "{links}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Does it with either boot loader, where tests of whole systems are wanted.
fn with_both(test: impl Fn(Loader)) {
    if systems::runs_guests() {
        [Loader::Emulated, Loader::Real].into_iter().for_each(test);
    }
}

#[test]
fn a_kernel_that_panics_before_the_new_system_is_confirmed_boots_the_former_one() {
    with_both(|loader| {
        let mut guest = Guest::boot(loader);
        guest.begin(SwitchAction::Switch, 300_000);
        guest.wait_for(SwitchStage::Confirming);
        guest.wait_for_version("two");
        let _ = guest.line.write_all(b"\necho c >/proc/sysrq-trigger\n");
        guest.wait_until("another boot", |guest| guest.booted().len() == 2);
        guest.assert_back();
        assert_eq!(guest.booted(), [guest.built.first.clone(), guest.built.first.clone()]);
    });
}

#[test]
fn a_system_is_tried_once_and_left_where_nobody_confirms_it() {
    with_both(|loader| {
        let mut guest = Guest::boot(loader);
        guest.begin(SwitchAction::Boot, 15_000);
        guest.wait_for(SwitchStage::AwaitingBoot);
        let _ = guest.line.write_all(b"\nsystemctl --no-block reboot\n");
        // It restarts itself: the unit that no system's configuration owns goes on with the switch.
        guest.wait_until("the former system to be booted again", |guest| guest.booted().len() == 3);
        guest.assert_back();
        let (first, second) = (guest.built.first.clone(), guest.built.second.clone());
        assert_eq!(guest.booted(), [first.clone(), second, first]);
    });
}

#[test]
fn a_system_that_panics_at_its_boot_is_tried_once_and_one_that_is_confirmed_boots_from_then_on() {
    with_both(|loader| {
        let mut guest = Guest::boot(loader);
        let second = guest.built.second.clone();
        let panics = format!(
            "case $0 in {second}/*) echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger;; esac"
        );
        guest.sh(&format!("echo '{panics}' >/etc/standin/break-boot; sync"));
        guest.begin(SwitchAction::Boot, 300_000);
        guest.wait_for(SwitchStage::AwaitingBoot);
        let _ = guest.line.write_all(b"\nsystemctl --no-block reboot\n");
        guest.wait_until("the former system to be booted again", |guest| guest.booted().len() == 3);
        guest.assert_back();
        // The same system, mended.
        guest.sh("rm /etc/standin/break-boot; sync");
        guest.begin(SwitchAction::Boot, 300_000);
        guest.wait_for(SwitchStage::AwaitingBoot);
        let _ = guest.line.write_all(b"\nsystemctl --no-block reboot\n");
        guest.wait_for_version("two");
        guest.wait_for(SwitchStage::Confirming);
        let confirm = format!("{PROGRAM} confirm {}", guest.switch());
        let said = guest.sh(&confirm).expect("an answer");
        assert!(said.contains("\"outcome\":\"applied\""), "{said}");
        let conf = guest.sh("cat /boot/loader/loader.conf").expect("an answer");
        // The second try has a generation of its own.
        assert!(conf.contains("default nixos-generation-3.conf"), "{conf}");
    });
}

#[test]
fn a_system_that_fills_the_disk_and_moves_the_clock_is_left_in_time() {
    if !systems::runs_guests() {
        return;
    }
    let mut guest = Guest::boot(Loader::Emulated);
    let second = guest.built.second.clone();
    // Decades ahead while it is activated; room is taken piece by piece, to the last block.
    let breaks = format!(
        "[ $self.$verb = {second}.test ] && {{ date -s @4000000000; n=0; for size in 400m 50m 5m 500k 50k 4k; do \
         while busybox fallocate -l $size /fill-$n; do n=$((n+1)); done; rm -f /fill-$n; done; }}"
    );
    guest.sh(&format!("cat >/etc/standin/break <<'END'\n{breaks}\nEND\nsync"));
    guest.begin(SwitchAction::Switch, 90_000);
    guest.wait_for(SwitchStage::Confirming);
    // And decades back while it waits: by this clock its time would never be over.
    let said = guest.sh("date; date -s @1000000000; echo x >/more; cat /more").expect("an answer");
    assert!(said.contains("2096") && said.contains("No space left"), "{said}");
    guest.assert_back();
    assert_eq!(guest.booted().len(), 1, "{}", guest.console());
}
