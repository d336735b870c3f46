//! A host for tests: OpenSSH's real server in namespaces, with this machine's programs and everything else of its own: root
//! file system, users, processes. Nothing of this machine is changed, and everything is gone when it is dropped.

mod stage;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::{Ran, wait_until};

pub use stage::{Stage, agent, calve};

/// Makes the tree of the host and becomes its sshd. $1 is a directory with what the host is made of, $2 the bytes of its
/// disk, $3 the sshd, $4 its port, $5 where the programs of an sshd of 9.8 or newer are. One that punishes broken connections is kept
/// from it: tests break some. `/sys` stays empty, so that nothing is done to this machine's cgroups, and the kernel's settings are
/// read-only, as they are this machine's. A second `/proc` is whole: the kernel gives sandboxes none where all that they see are
/// covered in part (`mount_too_revealing` of its `fs/namespace.c`).
const BOOT: &str = r#"
set -e
mount --make-rprivate /
r=$1/root
mkdir -p "$r"
mount -t tmpfs -o "size=$2,mode=755" host "$r"
for d in bin sbin lib lib32 lib64; do
    if [ -L "/$d" ]; then cp -P "/$d" "$r/$d"; elif [ -d "/$d" ]; then mkdir "$r/$d"; mount --rbind "/$d" "$r/$d"; fi
done
mkdir -p "$r/usr" "$r/dev" "$r/proc" "$r/sys" "$r/tmp" "$r/run/sshd" "$r/var/lib" "$r/root" "$r/home" "$r/old" "$r/sshd"
chmod 1777 "$r/tmp"
mount --rbind /usr "$r/usr"
mount --rbind /dev "$r/dev"
mount -t proc proc "$r/proc"
mkdir "$r/sshd/proc"
mount -t proc proc "$r/sshd/proc"
for file in sys sysrq-trigger; do
    [ -e "$r/proc/$file" ] || continue
    mount --bind "$r/proc/$file" "$r/proc/$file"; mount -o remount,bind,ro "$r/proc/$file"
done
cp -r "$1/etc" "$r/etc"
echo "127.0.0.1 localhost $(uname -n)" >"$r/etc/hosts"
cp "$3" "$r/sshd/sshd"
for program in "$5"/sshd-*; do if [ -e "$program" ]; then cp "$program" "$r/sshd/"; fi; done
chown -R 0:0 "$r/etc"
chmod 440 "$r/etc/sudoers"
for user in root home/pi home/admin; do
    mkdir -p "$r/$user/.ssh"; cp "$1/key.pub" "$r/$user/.ssh/authorized_keys"; chmod -R go= "$r/$user"
done
chown -R 1000:1000 "$r/home/pi"; chown -R 1001:1001 "$r/home/admin"
cd "$r"
pivot_root . old
umount -l /old
cd /
config=/etc/ssh/sshd_config
for option in PerSourcePenalties=no SshdSessionPath=/sshd/sshd-session SshdAuthPath=/sshd/sshd-auth; do
    if /sshd/sshd -t -f $config -o $option 2>/dev/null; then set -- "$@" -o $option; fi
done
port=$4
shift 5
exec /sshd/sshd -D -e -p "$port" -f $config "$@"
"#;

const SSHD_CONFIG: &str = "ListenAddress 127.0.0.1
HostKey /etc/ssh/host_key
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
StrictModes yes
";
const PASSWD: &str = "root:x:0:0::/root:/bin/sh
sshd:x:74:74::/run/sshd:/usr/sbin/nologin
pi:x:1000:1000::/home/pi:/bin/sh
admin:x:1001:1001::/home/admin:/bin/bash
";
const SHADOW: &str = "root:*:1::::::\nsshd:*:1::::::\npi:*:1::::::\nadmin:*:1::::::\n";
const GROUP: &str = "root:x:0:\nsshd:x:74:\npi:x:1000:\nadmin:x:1001:\n";
const SUDOERS: &str = "admin ALL=(ALL) NOPASSWD: ALL\nroot ALL=(ALL) ALL\n";

const PAM: &str =
    "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n";

/// A host.
pub struct SshHost {
    dir: tempfile::TempDir,
    port: u16,
    disk_bytes: u64,
    running: Option<Child>,
}

impl SshHost {
    /// One with a disk of so many MiB.
    pub fn boot(disk_mib: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("calve-host-").tempdir().expect("a directory");
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let ssh = dir.path().join("etc/ssh");
        fs::create_dir_all(&ssh).expect("a directory");
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        write("etc/ssh/sshd_config", SSHD_CONFIG);
        write("etc/passwd", PASSWD);
        write("etc/shadow", SHADOW);
        write("etc/group", GROUP);
        write("etc/sudoers", SUDOERS);
        fs::create_dir(dir.path().join("etc/pam.d")).expect("a directory");
        write("etc/pam.d/sudo", PAM);
        write("known_hosts", "");
        make_key(&dir.path().join("key"));
        let mut host = Self { dir, port, disk_bytes: disk_mib << 20, running: None };
        host.write_client(&format!("Host inner\n  Hostname 127.0.0.1\n  Port {port}\n  ProxyJump bastion\n"));
        host.change_key();
        host.start();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The client's configuration, with more of it in front, and a client that uses it.
    fn write_client(&self, more: &str) {
        let bastion = format!(
            "Host bastion\n  Hostname 127.0.0.1\n  Port {}\n  User root\n  StrictHostKeyChecking no\n  UserKnownHostsFile \
             /dev/null\n",
            self.port
        );
        write_client(self.dir.path(), &format!("{more}{bastion}"));
    }

    /// The client's program.
    pub fn client(&self) -> PathBuf {
        self.path("ssh")
    }

    /// Where it is, for `--on`.
    pub fn on(&self, user: &str) -> String {
        format!("ssh://{user}@127.0.0.1:{}", self.port)
    }

    /// The fingerprint of its key.
    pub fn fingerprint(&self) -> String {
        let mut command = Command::new("ssh-keygen");
        let shown = Ran::from_output(
            &command.arg("-lf").arg(self.path("etc/ssh/host_key")).output().expect("ssh-keygen runs"),
        );
        shown.stdout.split(' ').nth(1).expect("a fingerprint").to_owned()
    }

    /// Its key, as `known_hosts` has it.
    pub fn key(&self) -> String {
        fs::read_to_string(self.path("etc/ssh/host_key.pub")).expect("a key")
    }

    /// Lets the user know its key, as after a login.
    pub fn introduce(&self) {
        let key = self.key();
        let mut names = vec![format!("[127.0.0.1]:{}", self.port)];
        names.push("inner".to_owned());
        let lines: String = names.iter().map(|name| format!("{name} {key}")).collect();
        fs::write(self.path("known_hosts"), lines).expect("a file");
    }

    /// Gives it another key, for its next start.
    pub fn change_key(&self) {
        let key = self.path("etc/ssh/host_key");
        let _ = fs::remove_file(&key);
        make_key(&key);
    }

    /// Starts it, with an empty disk.
    pub fn start(&mut self) {
        let sshd = sshd();
        let mut command = if is_root() { Command::new("env") } else { Command::new("sudo") };
        // Also a test that is killed leaves nothing behind.
        command.args([
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
        ]);
        command.args(["sh", "-c", BOOT, "boot"]).arg(self.dir.path()).arg(self.disk_bytes.to_string());
        let programs = sshd.with_file_name("../lib/openssh");
        command
            .arg(sshd)
            .arg(self.port.to_string())
            .arg(programs)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let log = fs::File::create(self.path("sshd.log")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.running = Some(command.spawn().expect("unshare runs"));
        let port = self.port;
        wait_until("the host to listen", || {
            let ended = self.running.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            assert!(!ended, "the host has ended: {}", self.log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// What its sshd says.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("sshd.log")).unwrap_or_default()).into_owned()
    }

    /// Ends it as a power failure would.
    pub fn power_off(&mut self) {
        if let Some(mut child) = self.running.take() {
            if !is_root() {
                // Who became root is killed by root: the child of `sudo`.
                let sudo = child.id();
                let children =
                    fs::read_to_string(format!("/proc/{sudo}/task/{sudo}/children")).unwrap_or_default();
                let _ = Command::new("sudo")
                    .args(["-n", "kill", "-KILL"])
                    .args(children.split_whitespace())
                    .status();
            }
            let _ = child.kill();
            let _ = child.wait();
            let port = self.port;
            wait_until("the host to be off", || TcpStream::connect(("127.0.0.1", port)).is_err());
        }
    }

    /// Runs a script there as root, by a connection of its own.
    pub fn sh(&self, script: &str) -> Ran {
        let mut command = Command::new(self.client());
        command.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]);
        command.args(["-o", "ControlPath=none", "-p", &self.port.to_string(), "root@127.0.0.1", script]);
        Ran::from_output(&command.stdin(Stdio::null()).output().expect("ssh runs"))
    }

    /// Gives it a system as NixOS has one: this store path, with this `switch-to-configuration`, in its first generation.
    pub fn install(&self, toplevel: &str, switch_to_configuration: &str) {
        let script = format!(
            "set -e; umask 022; mkdir -p {toplevel}/bin /nix/var/nix/profiles /break; cd {toplevel}/bin\n\
             cat >switch-to-configuration <<'END'\n{switch_to_configuration}END\n\
             chmod 755 switch-to-configuration; ln -s {toplevel} /nix/var/nix/profiles/system-1-link\n\
             ln -s system-1-link /nix/var/nix/profiles/system\n\
             ln -s {toplevel} /run/current-system; ln -s {toplevel} /run/booted-system"
        );
        let ran = self.sh(&script);
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Cuts every connection but the one that says so.
    pub fn cut_connections(&self) {
        // The listener is the first process; the others are of connections, this one's last.
        self.sh("for p in $(pgrep -f '^sshd: '); do [ $p = 1 ] || echo $p; done | grep -v -x -e \"$PPID\" | xargs -r kill -9");
    }

    /// What calve has left there, as lines; empty where there is nothing.
    pub fn left(&self) -> String {
        // Written so that this script does not find itself.
        let script =
            "ls -d /var/lib/[c]alve* /root/.[c]alve* /home/*/.[c]alve* 2>/dev/null; pgrep -af '[c]alve'";
        // Whoever is not let in has seen nothing.
        let seen = self.sh(&format!("{script}; echo seen"));
        match seen.stdout.strip_suffix("seen\n") {
            Some(left) => left.to_owned(),
            None => format!("nobody is let in: {}", seen.stderr),
        }
    }
}

impl Drop for SshHost {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Makes `ssh` in a directory: a client with the key and the hosts, `key` and `known_hosts`, that are there, and nothing of this
/// machine's user. More of its configuration comes in front.
pub fn write_client(dir: &Path, more: &str) -> PathBuf {
    let [key, known, config, client] = ["key", "known_hosts", "config", "ssh"].map(|name| dir.join(name));
    let text = format!(
        "{more}Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {}\n  \
         GlobalKnownHostsFile /dev/null\n",
        key.display(),
        known.display()
    );
    fs::write(&config, text).expect("a file");
    fs::write(&client, format!("#!/bin/sh\nexec ssh -F '{}' \"$@\"\n", config.display())).expect("a file");
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).expect("permissions");
    client
}

/// Makes a pair of keys: this file, and its name with `.pub`.
pub fn make_key(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path);
    assert!(command.status().expect("ssh-keygen runs").success());
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.starts_with(b"0\n")
}

/// The server: installed here, or unpacked beside the build by `scripts/setup.sh`.
pub fn sshd() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/sshd/usr/sbin/sshd");
    let found = [unpacked, "/usr/sbin/sshd".into()].into_iter().find(|path| path.exists());
    found.expect("openssh-server is there: `./test` fetches it")
}
