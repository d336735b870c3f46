//! A real system in a guest of this host is switched by `calve switch`: as users do it, and with what breaks only there.

use std::process::Stdio;
use std::sync::OnceLock;

use e2e::{Home, Ran, standin, wait_until};

/// What is built once: the stand-in, and another version of it.
fn systems() -> &'static (String, String) {
    static SYSTEMS: OnceLock<(String, String)> = OnceLock::new();
    SYSTEMS.get_or_init(|| {
        let first = standin("build", &[]);
        let second = standin("variant", &[&first, "two"]);
        (first, second)
    })
}

struct Guest {
    home: Home,
    first: String,
    second: String,
}

impl Guest {
    fn boot() -> Self {
        let (first, second) = systems().clone();
        let home = Home::new();
        home.ok(&["run", "-d", "--name", "sys", "--memory", "768M", &first]);
        home.wait_for_running("sys");
        let guest = Self { home, first, second };
        wait_until("systemd to be up", || guest.version() == "standin");
        guest
    }

    fn sh(&self, line: &str) -> Ran {
        let sh = format!("{}/sw/bin/sh", self.first);
        self.home.run(&["exec", "sys", "--", &sh, "-c", &format!("PATH={}/sw/bin; {line}", self.first)])
    }

    /// Which version's service has run last.
    fn version(&self) -> String {
        self.sh("cat /run/standin-version").stdout.trim().to_owned()
    }

    fn current(&self) -> String {
        self.sh("readlink /run/current-system").stdout.trim().to_owned()
    }

    fn profile(&self) -> String {
        self.sh("readlink /nix/var/nix/profiles/$(readlink /nix/var/nix/profiles/system)")
            .stdout
            .trim()
            .to_owned()
    }

    fn switch(&self, options: &[&str]) -> Ran {
        self.home.run(&[&["switch", "sys", &self.second], options].concat())
    }

    /// Has the new system's activation do this first.
    fn breaks(&self, line: &str) {
        let second = &self.second;
        let file = format!("[ $self.$verb = {second}.test ] && {{ {line} }}");
        let ran = self.sh(&format!("cat >/etc/standin/break <<'END'\n{file}\nEND"));
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    #[track_caller]
    fn assert_former(&self) {
        wait_until("the former system to run", || {
            self.current() == self.first && self.version() == "standin"
        });
        assert_eq!(self.profile(), self.first);
    }
}

#[test]
fn a_system_is_switched_looked_at_and_rolled_back() {
    if !systems::runs_guests() {
        return;
    }
    let guest = Guest::boot();
    let home = &guest.home;
    let drift = home.run(&["drift", "sys"]);
    assert_eq!(drift.code, 0, "{drift:?}");
    let dry = guest.switch(&["--action", "dry-activate"]);
    assert!(dry.code == 0 && dry.stdout.contains("would activate"), "{dry:?}");
    assert_eq!(guest.current(), guest.first);

    let ran = guest.switch(&["--health", "grep -q two /run/standin-version"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        (guest.current(), guest.version(), guest.profile()),
        (guest.second.clone(), "two".into(), guest.second.clone())
    );
    // What it was booted with is another system, and that is told.
    let drift = home.run(&["drift", "sys"]);
    assert!(drift.code == 1 && drift.stdout.contains("it was booted with"), "{drift:?}");

    let history = home.ok(&["history", "sys"]);
    assert!(
        history.contains("applied") && history.contains("2 (current)") && history.contains(&guest.second),
        "{history}"
    );

    let ran = home.run(&["rollback", "sys", "--health", "grep -q standin /run/standin-version"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    guest.assert_former();
    assert_eq!(home.run(&["drift", "sys"]).code, 0);
    let unhealthy = guest.switch(&["--health", "false", "--confirm", "40s"]);
    assert!(unhealthy.code == 3 && unhealthy.stderr.contains("former system"), "{unhealthy:?}");
    guest.assert_former();
    assert!(home.ok(&["history", "sys"]).contains("rolled back"));
}

#[test]
fn a_guest_whose_agent_or_network_the_new_system_breaks_goes_back_by_itself() {
    if !systems::runs_guests() {
        return;
    }
    let guest = Guest::boot();
    // The agent and its init, as a system does that stops a service: the host is cut off for good.
    guest.breaks("for pid in $(ps -o pid,args | grep '[@]calve-agent' | sed 's/^ *//; s/ .*//'); do kill -9 $pid; done;");
    let begun = guest
        .home
        .command(["switch", "sys", &guest.second, "--confirm", "45s"])
        .stderr(Stdio::null())
        .spawn();
    let mut begun = begun.expect("it starts");
    // Only its console tells what the guest does now.
    wait_until("the former system's service to be started again", || {
        let console = guest.home.run(&["logs", "--console", "sys"]).stdout;
        let two = console.rfind("stand-in two is up");
        two.is_some() && console.rfind("stand-in standin is up") > two
    });
    let _ = begun.kill();
    let _ = begun.wait();
}

#[test]
fn two_switches_at_once_and_a_server_that_is_killed_meanwhile() {
    if !systems::runs_guests() {
        return;
    }
    let guest = Guest::boot();
    guest.breaks("sleep 10;");
    let home = &guest.home;
    let mut first = home.command(["switch", "sys", &guest.second, "--confirm", "170s"]);
    let first = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    wait_until("the host to be switched", || {
        home.json(&["history", "sys"])["facts"]["switch"]["stage"]
            .as_str()
            .is_some_and(|stage| stage != "ended")
    });
    let second = guest.switch(&[]);
    assert!(second.code == 125 && second.stderr.contains("is being switched already: by uid:"), "{second:?}");
    home.kill_server();
    let first = e2e::finish(first);
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(guest.current(), guest.second);
}
