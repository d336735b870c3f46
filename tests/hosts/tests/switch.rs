//! `calve adopt ssh://…` and `calve switch`, with the built programs and a real sshd: a host that is there gets another system, has
//! its former one back where that cuts it off or is not well, and is given back as it is.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use e2e::{Ran, finish, wait_until};
use hosts::Stage;
use systems::{FORMER, switch_to_configuration};

/// What is left on a host that was switched: what `calve-switch` keeps.
const KEPT: &str = "/var/lib/calve\n";

/// Bytes of a file that a system changes little of.
const LARGE_BYTES: u64 = 4 << 20;

/// An adopted host, `web`.
struct Web {
    stage: Stage,
    on: String,
}

impl Web {
    fn adopted() -> Self {
        let stage = Stage::introduced();
        stage.host.install(FORMER, &switch_to_configuration("former"));
        let web = Self { on: stage.host.on("root"), stage };
        let ran = web.adopt(&["--name", "web", "--ttl", "none"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        web
    }

    fn adopt(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.stage.calve([&["adopt", self.on.as_str()], arguments].concat()))
    }

    fn calve(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.stage.calve(arguments.iter().copied()))
    }

    /// A shell's script on the host itself.
    #[track_caller]
    fn exec(&self, script: &str) -> String {
        let ran = self.calve(&["exec", "web", "--", "sh", "-c", script]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    /// A system with this name, as a tree.
    fn system(&self, name: &str) -> String {
        let dir = self.stage.home.path().join(name);
        let write = |path: &str, text: &str, mode: u32| {
            let file = dir.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for file in ["init", "kernel", "initrd", "kernel-params"] {
            write(file, name, 0o644);
        }
        write("bin/switch-to-configuration", &switch_to_configuration(name), 0o755);
        dir.to_str().unwrap().to_owned()
    }

    /// Gives a system a file with these contents.
    fn give(&self, name: &str, contents: &[u8]) {
        let dir = self.stage.home.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("large"), contents).unwrap();
    }

    /// How many bytes each system took that was brought so far.
    fn brought(&self) -> Vec<u64> {
        let log = self.stage.server_log();
        let took =
            log.lines().filter_map(|line| line.split_once(" bytes took ")?.1.split(' ').next()?.parse().ok());
        took.collect()
    }

    fn switch(&self, name: &str, options: &[&str]) -> Ran {
        finish(self.switching(name, options))
    }

    fn switching(&self, name: &str, options: &[&str]) -> Child {
        let system = self.system(name);
        let mut command = self.stage.calve([&["switch", "web", system.as_str()], options].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the host says first at one of its ports, which is forwarded.
    fn banner_of(&self, port: &str) -> String {
        let mapping = format!("0:{port}");
        let mut command = self.stage.calve(["forward", "web", mapping.as_str()]);
        let mut forward = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (mut here, mut banner) = (String::new(), String::new());
        BufReader::new(forward.stdout.take().unwrap()).read_line(&mut here).unwrap();
        let stream = TcpStream::connect(here.trim()).unwrap();
        BufReader::new(stream).read_line(&mut banner).unwrap();
        forward.kill().unwrap();
        forward.wait().unwrap();
        banner
    }

    /// Has a verb of a system (`new-test`) do this first.
    fn breaks(&self, what: &str, line: &str) {
        let ran = self.stage.host.sh(&format!("cat >/break/{what} <<'END'\n{line}\nEND"));
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// The name of the system that runs, by a connection of its own.
    fn current(&self) -> String {
        let link = self.stage.host.sh("readlink /run/current-system").stdout;
        link.trim().rsplit('-').next().unwrap_or_default().to_owned()
    }

    fn profile(&self) -> String {
        let link = self.stage.host.sh("readlink -f /nix/var/nix/profiles/system").stdout;
        link.trim().rsplit('-').next().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn has(&self, name: &str) {
        assert_eq!((self.current().as_str(), self.profile().as_str()), (name, name));
    }
}

#[test]
fn a_host_is_adopted_switched_looked_at_rolled_back_and_given_back() {
    let web = Web::adopted();
    // The host itself, and not a sandbox on it.
    let seen = web.exec("ls -d /sshd; id -u; cat /proc/1/comm; readlink /run/current-system");
    assert_eq!(seen, format!("/sshd\n0\nsshd\n{FORMER}\n"));
    let listed = web.stage.home.ok(&["ps"]);
    assert!(listed.contains("web") && listed.contains(&format!("adopted {}", web.on)), "{listed}");
    let again = web.adopt(&["--name", "other", "--ttl", "1h"]);
    assert!(again.code == 125 && again.stderr.contains("is adopted already, as web"), "{again:?}");
    let drift = web.calve(&["drift", "web"]);
    assert_eq!(drift.code, 0, "{drift:?}");
    let dry = web.switch("new", &["--action", "dry-activate"]);
    assert!(dry.code == 0 && dry.stdout.contains("would activate new"), "{dry:?}");
    web.has("former");

    let ran = web.switch("new", &["--health", "grep -q 'new test' /log", "--confirm", "40s"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    web.has("new");
    let drift = web.calve(&["drift", "web"]);
    assert!(drift.code == 1 && drift.stdout.contains("it was booted with"), "{drift:?}");
    let history = web.calve(&["history", "web"]).stdout;
    assert!(history.contains("applied") && history.contains("2 (current)"), "{history}");
    let unhealthy = web.switch("sick", &["--health", "false", "--confirm", "5s"]);
    assert!(unhealthy.code == 3 && unhealthy.stderr.contains("former system"), "{unhealthy:?}");
    web.has("new");
    let ran = web.calve(&["rollback", "web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    web.has("former");
    let history = web.calve(&["history", "web"]).stdout;
    assert!(history.contains("rolled back"), "{history}");

    // Copies and forwards go to the host as well.
    let file = web.stage.home.path().join("file");
    std::fs::write(&file, "copied").unwrap();
    web.stage.home.ok(&["cp", file.to_str().unwrap(), "web:/root/"]);
    assert_eq!(web.stage.host.sh("cat /root/file").stdout, "copied");
    let port = web.on.rsplit(':').next().unwrap();
    assert!(web.banner_of(port).starts_with("SSH-2.0"));
    // Nothing that was started there outlives the session.
    web.exec("setsid sleep 1234 >/dev/null 2>&1 & echo begun");
    web.stage.home.ok(&["rm", "web"]);
    wait_until("the host to be given back", || web.stage.host.left() == KEPT);
    assert_eq!(web.stage.host.sh("pgrep -f '[s]leep 1234'").stdout, "");
    web.has("former");
    let kept = web.stage.host.sh("ls /var/lib/calve/switch").stdout;
    assert_eq!(kept, "calve-switch\nhistory\nlock\nrecord\nsum\n");
    // It can be adopted anew, and knows what was.
    assert_eq!(web.adopt(&["--name", "web", "--ttl", "none"]).code, 0);
    assert!(web.calve(&["history", "web"]).stdout.contains("applied"));
}

#[test]
fn a_system_that_lets_nobody_in_any_more_is_left_though_the_old_connection_stands() {
    let web = Web::adopted();
    // Old connections go on: another session in one of them proves nothing.
    web.breaks("new-test", "mv /root/.ssh/authorized_keys /root/.ssh/away");
    web.breaks("former-test", "[ ! -e /root/.ssh/away ] || mv /root/.ssh/away /root/.ssh/authorized_keys");
    let borrowed =
        web.stage.run(&web.on, &["--detach", "--name", "box", "--ttl", "10m"], "echo up; sleep 600");
    assert_eq!(borrowed.code, 0, "{borrowed:?}");
    web.stage.home.wait_for_running("box");
    let ran = web.switch("new", &["--confirm", "10s"]);
    assert!(ran.code == 3 && ran.stderr.contains("did not hear the host's agent"), "{ran:?}");
    web.has("former");

    // The same with everybody thrown out, the server with them.
    web.breaks(
        "new-test",
        "mv /root/.ssh/authorized_keys /root/.ssh/away; for p in $(pgrep -f '^sshd: '); do [ $p = 1 ] || kill -9 $p; done",
    );
    let ran = web.switch("new", &["--confirm", "10s"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    web.has("former");
    let log = web.stage.host.sh("cat /log").stdout;
    assert_eq!(log.matches("new test").count(), 2, "{log}");
}

#[test]
fn a_switch_goes_on_while_its_server_is_killed_and_its_connections_are_cut() {
    let mut web = Web::adopted();
    web.breaks("new-test", "sleep 6");
    let switching = web.switching("new", &["--confirm", "60s"]);
    wait_until("the activation to begin", || web.stage.host.sh("cat /log").stdout.contains("new test"));
    web.stage.kill_server();
    // Of a server that is dead nothing is there but what carries the switch out.
    wait_until("the agent to be gone", || !web.stage.host.left().contains("--host"));
    assert!(web.stage.host.left().contains("calve-switch"), "{}", web.stage.host.left());
    let ran = finish(switching);
    assert_eq!(ran.code, 0, "{ran:?}");
    web.has("new");

    web.breaks("newer-test", "sleep 3");
    let switching = web.switching("newer", &["--confirm", "60s"]);
    wait_until("the activation to begin", || web.stage.host.sh("cat /log").stdout.contains("newer test"));
    web.stage.host.cut_connections();
    let ran = finish(switching);
    assert_eq!(ran.code, 0, "{ran:?}");
    web.has("newer");
    web.stage.serve();
}

#[test]
fn a_host_lends_sandboxes_while_it_is_adopted_and_is_reached_again_after_a_restart() {
    let mut web = Web::adopted();
    assert_eq!(web.exec("echo in"), "in\n");
    // The last sandbox takes the agent's program away; who comes next brings it.
    let ran = web.stage.run(&web.on, &[], "echo boxed");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "boxed\n"), "{ran:?}");
    wait_until("the sandbox to be gone", || web.stage.host.sh("ls /var/lib/calve-lent/m").stdout.is_empty());
    assert_eq!(web.exec("echo still"), "still\n");
    web.stage.host.cut_connections();
    assert_eq!(web.exec("echo again"), "again\n");
    // Told to end, as by a host that restarts, or killed: the next one takes its place.
    for signal in ["TERM", "KILL"] {
        let agents = web.stage.host.sh("pgrep -f '[a]gent-.* --host'").stdout;
        web.stage.host.sh(&format!("pkill -{signal} -f '[a]gent-.* --host'"));
        wait_until("another agent", || {
            let ran = web.calve(&["exec", "web", "--", "pgrep", "-f", "[a]gent-.* --host"]);
            ran.code == 0
                && !ran.stdout.is_empty()
                && !agents.lines().any(|old| ran.stdout.lines().any(|new| new == old))
        });
        assert_eq!(web.stage.home.state("web"), "running");
    }
    let ran = web.stage.run(&web.on, &[], "echo boxed again");
    assert_eq!(ran.code, 0, "{ran:?}");
    // A host whose disk was in memory has lost all, and is the same machine.
    web.stage.host.power_off();
    wait_until("it to be known as away", || {
        let status = web.stage.home.ok(&["status", "web"]);
        status.contains("running") && status.contains("not heard") && status.contains("Connection refused")
    });
    let away = web.calve(&["exec", "web", "--", "true"]);
    let why = ["web was not reached within", "Connection refused"];
    assert!(away.code == 125 && why.iter().all(|why| away.stderr.contains(why)), "{away:?}");
    web.stage.host.start();
    assert_eq!(web.exec("cat /proc/1/comm"), "sshd\n");
    let none = web.switch("new", &[]);
    assert!(none.code == 125 && none.stderr.contains("it runs no NixOS that can be switched"), "{none:?}");
    web.stage.home.ok(&["rm", "web"]);
    // It has been switched never since.
    wait_until("the host to be given back", || web.stage.host.left() == KEPT);
}

#[test]
fn a_lease_lets_go_of_a_host_and_a_host_that_is_away_is_let_go_of_in_time() {
    let mut web = Web::adopted();
    web.stage.home.ok(&["rm", "web"]);
    web.stage.nothing_is_left();
    assert_eq!(web.adopt(&["--name", "short", "--ttl", "20s", "--grace", "0s"]).code, 0);
    web.stage.home.wait_for_state("short", "expired");
    web.stage.nothing_is_left();
    // It is up, as it was before.
    assert_eq!(web.stage.host.sh("echo up").stdout, "up\n");

    assert_eq!(web.adopt(&["--name", "away", "--ttl", "none"]).code, 0);
    web.stage.host.power_off();
    web.stage.home.ok(&["rm", "away"]);
    wait_until("the host to be let go of", || web.calve(&["status", "away"]).code != 0);
}

#[test]
fn a_host_that_cannot_be_adopted_is_one_sentence() {
    let mut stage = Stage::set(256);
    let adopt = |stage: &Stage, user: &str, options: &[&str]| {
        let on = stage.host.on(user);
        Ran::of(stage.calve([&["adopt", on.as_str(), "--ttl", "1h"], options].concat()))
    };
    let unknown = adopt(&stage, "root", &[]);
    assert!(unknown.code == 125 && unknown.stderr.contains("is not known"), "{unknown:?}");
    let wrong = adopt(&stage, "root", &["--host-key", &format!("SHA256:{}", "A".repeat(43))]);
    assert!(wrong.code == 125 && wrong.stderr.contains("was asked for"), "{wrong:?}");
    let key = stage.host.fingerprint();
    let user = adopt(&stage, "pi", &["--host-key", &key]);
    assert!(user.code == 125 && user.stderr.contains("is not root there"), "{user:?}");
    assert_eq!(stage.home.ok(&["ps", "--all"]).lines().count(), 1);
    // As a user for whom `sudo` asks nothing.
    let admin = adopt(&stage, "admin", &["--host-key", &key, "--name", "web"]);
    assert_eq!(admin.code, 0, "{admin:?}");
    assert_eq!(stage.home.ok(&["exec", "web", "--", "id", "-u"]), "0\n");
    stage.home.ok(&["rm", "web"]);
    stage.nothing_is_left();
    stage.host.power_off();
    let away = adopt(&stage, "root", &[]);
    assert!(away.code == 125 && away.stderr.contains("Connection refused"), "{away:?}");
}

#[test]
fn of_a_new_version_only_what_changed_is_sent_and_all_of_it_where_the_old_one_is_spoilt() {
    let web = Web::adopted();
    // No compression makes it smaller.
    let mut large = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(LARGE_BYTES).read_to_end(&mut large).unwrap();
    for version in ["web-1.0", "web-1.1"] {
        large.push(1);
        web.give(version, &large);
        let ran = web.switch(version, &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(web.profile().ends_with(&version[4..]));
    }
    let brought = web.brought();
    assert!(brought.len() == 2 && brought[0] >= LARGE_BYTES && brought[1] < LARGE_BYTES / 8, "{brought:?}");
    // What is there is not what it was: it is found out, and everything is sent.
    web.exec("f=$(readlink /run/current-system)/large; chmod u+w $f && echo spoilt | dd of=$f conv=notrunc bs=1 seek=2000000");
    large.push(1);
    web.give("web-1.2", &large);
    let ran = web.switch("web-1.2", &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let sum = web.exec("sha256sum < $(readlink /run/current-system)/large");
    assert_eq!(sum.split(' ').next(), Some(calve_nix::Sha256Hash::of(&large).to_hex().as_str()));
    assert!(web.brought().last().is_some_and(|bytes| *bytes >= LARGE_BYTES), "{:?}", web.brought());
}
