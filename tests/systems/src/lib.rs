//! A host that is only a directory, with systems that are only scripts: what `calve-switch` does to it is what it does to
//! any host, and a test may restart it, cut it off and break it within seconds.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use calve_wire::system::{
    HostAnswer, HostFacts, HostOrder, HostRoom, HostSwitch, SWITCH_DIR, SWITCH_VERSION, SwitchAction,
    SwitchStage,
};

/// The system that the host has.
pub const FORMER: &str = "/nix/store/00000000000000000000000000000000-nixos-system-former";
/// The system that it shall have.
pub const NEW: &str = "/nix/store/11111111111111111111111111111111-nixos-system-new";
/// How long a host may take until it has its former system again: what is promised.
pub const BACK_WITHIN: Duration = Duration::from_secs(90);

/// Whether tests that boot whole systems in emulation are wanted: `CALVE_GUESTS=1 cargo test -p systems`. They take minutes each.
pub fn runs_guests() -> bool {
    std::env::var_os("CALVE_GUESTS").is_some_and(|value| value == "1")
}

/// How long anything may take in such a system on a busy host.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(400);

/// A guest that a disk is to be given; its console and what it writes to that are in `dir`.
pub fn guest(dir: &Path) -> Command {
    let mut command = e2e::emulator("q35", 768, &dir.join("console"));
    command.env("TMPDIR", dir);
    command
}

/// Gives a guest the disk that `tests/standin/disk` made in `made`, which stays as it is: what is written goes to a file of its own,
/// which a restart of the guest outlives. Devices whose names count virtio's, as those of ports do, come before it.
pub fn add_disk(guest: &mut Command, made: &Path) {
    let disk = made.join("disk");
    let drive = format!("file={},if=none,id=disk,format=raw,snapshot=on,cache=unsafe", disk.display());
    guest.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
}

/// Has the stand-in's boot loader, which lies beside the disk, boot a guest with the kernel of this system.
pub fn boot_by_standin(guest: &mut Command, made: &Path, system: &str) {
    guest.args(["-kernel", &format!("{system}/kernel"), "-initrd"]).arg(made.join("boot-initrd"));
    guest.args(["-append", "console=ttyS0 loglevel=4 systemd.show_status=0"]);
}

/// `calve-switch`: the one that `CALVE_SWITCH` names, or the built one.
pub fn program() -> PathBuf {
    std::env::var_os("CALVE_SWITCH").map_or_else(|| e2e::bin_dir().join("calve-switch"), PathBuf::from)
}

/// The `switch-to-configuration` of the system with this name: tells `/log` what it was asked, and does what is said in
/// `/break/NAME-VERB` first.
pub fn switch_to_configuration(name: &str) -> String {
    SWITCH.replace("@name@", name)
}

/// A host in a directory.
pub struct FakeHost {
    dir: tempfile::TempDir,
    /// It is a disk of its own.
    mounted: bool,
}

/// What `switch-to-configuration` of a system does: what the real one does, as far as it can be seen from outside.
const SWITCH: &str = r#"#!/bin/sh
root=$CALVE_SWITCH_ROOT name=@name@
self=${0%/bin/*} self=${self#"$root"}
echo "$name $1" >>"$root/log"
[ -e "$root/break/$name-$1" ] && . "$root/break/$name-$1"
case $1 in
boot)
  loader=$root/boot/loader
  [ -d "$loader" ] || exit 0
  for link in "$root"/nix/var/nix/profiles/system-*-link; do
    number=${link##*/system-} number=${number%-link}
    printf 'title NixOS\noptions init=%s/init quiet\n' "$(readlink "$link")" >"$loader/new" || exit 1
    mv "$loader/new" "$loader/entries/nixos-generation-$number.conf" || exit 1
  done
  for entry in "$loader"/entries/*; do
    number=${entry##*-} number=${number%.conf}
    [ -L "$root/nix/var/nix/profiles/system-$number-link" ] || rm -f "$entry"
  done
  now=$(readlink "$root/nix/var/nix/profiles/system") now=${now##*system-} now=${now%-link}
  printf 'timeout 3\ndefault nixos-generation-%s.conf\n' "$now" >"$loader/new" || exit 1
  mv "$loader/new" "$loader/loader.conf" ;;
test) ln -sfn "$self" "$root/run/current-system" ;;
dry-activate) echo "would activate $name" ;;
esac
"#;

/// What `bootctl set-oneshot` does, with a file for the firmware's variable.
const BOOTCTL: &str = r#"#!/bin/sh
[ -e "$CALVE_SWITCH_ROOT/break/bootctl" ] && . "$CALVE_SWITCH_ROOT/break/bootctl"
[ "$1" = set-oneshot ] && echo "$2" >"$CALVE_SWITCH_ROOT/boot/loader/oneshot"
"#;

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A host with the system [`FORMER`] in its generation 1, a boot loader, and [`NEW`] in its store.
    pub fn new() -> Self {
        Self::filled(Self::empty())
    }

    /// The same on a disk of its own that has room for `mib` MiB and `files` files; none, with a sentence, where this user may
    /// not mount.
    pub fn on_small_disk(mib: u32, files: u32) -> Option<Self> {
        let mut host = Self::empty();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}M,nr_inodes={files}"), "calve-host"]);
        let mounted = mount.arg(host.dir.path()).output().expect("mount starts");
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            eprintln!("not shown: a small disk cannot be mounted: {}", why.trim());
            return None;
        }
        host.mounted = true;
        Some(Self::filled(host))
    }

    fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("calve-host-").tempdir().expect("a directory");
        Self { dir, mounted: false }
    }

    fn filled(host: Self) -> Self {
        for dir in [
            "nix/var/nix/profiles",
            "run",
            "break",
            "boot/loader/entries",
            "proc/sys/kernel/random",
            "health",
        ] {
            std::fs::create_dir_all(host.path(dir)).expect("a directory");
        }
        for (system, name) in [(FORMER, "former"), (NEW, "new")] {
            host.script(&format!("{system}/bin/switch-to-configuration"), &switch_to_configuration(name));
            host.script(&format!("{system}/sw/bin/bootctl"), BOOTCTL);
        }
        host.set_boot_id();
        let profiles = host.path("nix/var/nix/profiles");
        symlink(FORMER, profiles.join("system-1-link")).expect("a link");
        symlink("system-1-link", profiles.join("system")).expect("a link");
        for link in ["run/current-system", "run/booted-system"] {
            symlink(FORMER, host.path(link)).expect("a link");
        }
        let entry = host.path("boot/loader/entries/nixos-generation-1.conf");
        std::fs::write(entry, format!("title NixOS\noptions init={FORMER}/init quiet\n")).expect("written");
        std::fs::write(host.path("boot/loader/loader.conf"), "timeout 3\ndefault nixos-generation-1.conf\n")
            .expect("written");
        host
    }

    /// A path of the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    /// A file of `calve-switch` on the host.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.path(SWITCH_DIR).join(name)
    }

    /// Writes an executable file.
    pub fn script(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Has a verb of a system's `switch-to-configuration` (`new-test`) or `bootctl` do this before its own work.
    pub fn breaks(&self, what: &str, line: &str) {
        std::fs::write(self.path("break").join(what), format!("{line}\n")).expect("written");
    }

    /// Where a link of the host leads.
    pub fn link(&self, path: &str) -> Option<String> {
        std::fs::read_link(self.path(path)).ok()?.into_os_string().into_string().ok()
    }

    /// The system that runs.
    pub fn current(&self) -> String {
        self.link("run/current-system").unwrap_or_default()
    }

    /// The system to which the profile leads.
    pub fn profile(&self) -> String {
        let link = self.link("nix/var/nix/profiles/system").unwrap_or_default();
        self.link(&format!("nix/var/nix/profiles/{link}")).unwrap_or(link)
    }

    /// The system that boots by default.
    pub fn boots(&self) -> String {
        let conf = std::fs::read_to_string(self.path("boot/loader/loader.conf")).expect("it is there");
        let entry =
            conf.lines().find_map(|line| line.strip_prefix("default ")).expect("a default").to_owned();
        self.init_of(&entry)
    }

    fn init_of(&self, entry: &str) -> String {
        let text = std::fs::read_to_string(self.path("boot/loader/entries").join(entry)).expect("an entry");
        let word = text.split_whitespace().find_map(|word| word.strip_prefix("init=")).expect("an init");
        word.trim_end_matches("/init").to_owned()
    }

    /// What the systems' programs were asked, in order: `new test`.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs a verb of `calve-switch`.
    pub fn run(&self, words: &[&str], input: Option<&str>) -> Output {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.dir.path()).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("calve-switch starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut stdin, input.unwrap_or_default().as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn parsed<T: serde::de::DeserializeOwned>(&self, words: &[&str], input: Option<&str>) -> T {
        let output = self.run(words, input);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&said).unwrap_or_else(|error| {
            panic!("{words:?}: {error}: {said} {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// An order to switch to [`NEW`].
    pub fn order(&self, action: SwitchAction, health: Option<&str>, confirm_ms: u64) -> HostOrder {
        HostOrder {
            version: SWITCH_VERSION,
            id: "one".to_owned(),
            toplevel: NEW.to_owned(),
            action,
            health: health.map(str::to_owned),
            confirm_ms,
            generation: None,
            by: "uid:1000".to_owned(),
            incoming: None,
        }
    }

    /// What the host lacks of paths with these base names, and where it wants them.
    pub fn room(&self, names: &[&str]) -> HostRoom {
        self.parsed(&["room", "one"], Some(&names.join("\n")))
    }

    /// Begins a switch.
    pub fn begin(&self, order: &HostOrder) -> HostAnswer {
        self.parsed(&["begin"], Some(&serde_json::to_string(order).expect("plain data")))
    }

    /// The switch as it stands.
    pub fn status(&self) -> Option<HostSwitch> {
        self.parsed(&["status"], None)
    }

    /// The switch as its record says it, whoever carries it out or does not.
    pub fn facts(&self) -> HostFacts {
        self.parsed(&["facts"], None)
    }

    /// The server's word.
    pub fn confirm(&self, id: &str) -> HostAnswer {
        self.parsed(&["confirm", id], None)
    }

    /// Waits until the switch has come to a stage.
    pub fn wait_for(&self, stage: SwitchStage) -> HostSwitch {
        self.wait_until(&format!("{stage:?}"), |switch| switch.stage == stage)
    }

    /// Waits until the switch is as wished; fails where it ends otherwise, or takes too long.
    pub fn wait_until(&self, what: &str, wished: impl Fn(&HostSwitch) -> bool) -> HostSwitch {
        let start = Instant::now();
        loop {
            let switch = self.status();
            if let Some(switch) = switch.clone().filter(&wished) {
                return switch;
            }
            let ended = switch.as_ref().is_some_and(|switch| switch.outcome.is_some());
            assert!(
                !ended && start.elapsed() < BACK_WITHIN,
                "waited in vain for {what}: {switch:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The processes of `calve-switch` that carry the switch out, the first of them first.
    pub fn supervisors(&self) -> Vec<i32> {
        let begun = format!("--root\0{}\0", self.dir.path().display());
        let mut found: Vec<i32> = std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let of = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&of("cmdline")).contains(&begun) && of("comm") == b"calve-switch\n"
            })
            // One that is not begun yet has the name of its program; it has a session of its own later.
            .filter(|pid| !is_zombie(*pid))
            .collect();
        found.sort_unstable();
        found
    }

    /// Ends everything that runs on the host, as a loss of power does.
    pub fn lose_power(&self) {
        loop {
            let supervisors = self.supervisors();
            let programs = self.programs();
            if supervisors.is_empty() && programs.is_empty() {
                return;
            }
            for pid in supervisors.into_iter().chain(programs) {
                kill(pid, "KILL");
            }
        }
    }

    /// Other processes with this host around them.
    fn programs(&self) -> Vec<i32> {
        let around = format!("CALVE_SWITCH_ROOT={}\0", self.dir.path().display());
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let around_it = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                String::from_utf8_lossy(&around_it).contains(&around) && !is_zombie(*pid)
            })
            .collect()
    }

    /// Boots what the boot loader says: the entry that is tried once, or the default. `up` is whether it comes up so far
    /// that anything of it runs.
    pub fn boot(&self, up: bool) -> String {
        self.lose_power();
        let oneshot = self.path("boot/loader/oneshot");
        let once = std::fs::read_to_string(&oneshot).unwrap_or_default().trim().to_owned();
        let _ = std::fs::remove_file(oneshot);
        let system = if once.is_empty() { self.boots() } else { self.init_of(&once) };
        self.set_boot_id();
        for link in ["run/current-system", "run/booted-system"] {
            let _ = std::fs::remove_file(self.path(link));
            symlink(&system, self.path(link)).expect("a link");
        }
        let _ = std::fs::remove_file(self.path("run/restart-asked"));
        if up {
            assert!(self.run(&["resume"], None).status.success());
        }
        system
    }

    fn set_boot_id(&self) {
        let id = format!("{:?}", Instant::now());
        std::fs::write(self.path("proc/sys/kernel/random/boot_id"), id).expect("written");
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.lose_power();
        if self.mounted {
            let unmounted = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
            assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// Sends a signal.
pub fn kill(pid: i32, signal: &str) {
    // It may have ended by itself.
    let _ = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).stderr(Stdio::null()).status();
}

/// Whether a file is there.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
