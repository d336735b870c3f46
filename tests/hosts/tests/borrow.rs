//! `calve run --on ssh://…`, with the built programs and a real sshd: the host is borrowed, runs the program in a sandbox, and
//! is given back with nothing of calve left on it, whoever dies.

use e2e::{finish, wait_until};
use hosts::{Stage, agent};

/// Counts for ever.
const COUNT: &str = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done";

#[test]
fn a_host_is_borrowed_by_a_key_that_is_known_and_given_back() {
    let mut stage = Stage::set(256);
    let on = stage.host.on("root");
    // Nobody has said who this is.
    let unknown = stage.run(&on, &[], "true");
    let shown = stage.host.fingerprint();
    assert!(unknown.code == 125 && unknown.stderr.contains("is not known"), "{unknown:?}");
    assert!(unknown.stderr.contains(&format!("--host-key {shown}")), "{unknown:?}");
    let wrong = stage.run(&on, &["--host-key", &format!("SHA256:{}", "A".repeat(43))], "true");
    assert!(wrong.code == 125 && wrong.stderr.contains("was asked for"), "{wrong:?}");
    let ran =
        stage.run(&on, &["--host-key", &shown], "echo at $(hostname); ls /; id -u; echo oh >&2; exit 7");
    assert_eq!((ran.code, ran.stderr.as_str()), (7, "oh\n"), "{ran:?}");
    // The program sees a sandbox, and nothing of the host.
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("at run-") && lines.last() == Some(&"0"), "{ran:?}");
    assert!(lines.contains(&"nix") && !lines.contains(&"sshd") && !lines.contains(&"home"), "{ran:?}");
    stage.nothing_is_left();
    // It was remembered.
    let again = stage.run(&on, &[], "echo again");
    assert_eq!((again.code, again.stdout.as_str()), (0, "again\n"), "{again:?}");
    stage.nothing_is_left();
    stage.host.power_off();
    let away = stage.run(&on, &[], "true");
    assert!(away.code == 125 && away.stderr.contains("Connection refused"), "{away:?}");
    // Another host has its place.
    stage.host.change_key();
    stage.host.start();
    let shows = stage.host.fingerprint();
    for _ in 0..2 {
        let changed = stage.run(&on, &[], "true");
        assert!(changed.code == 125 && changed.stderr.contains("has changed"), "{changed:?}");
        assert!(changed.stderr.contains(&shows), "{changed:?}");
    }
    assert_eq!(stage.host.left(), "");
    let ran = stage.run(&on, &["--host-key", &shows], "exit 3");
    assert_eq!(ran.code, 3, "{ran:?}");
    stage.nothing_is_left();
}

#[test]
fn a_program_goes_on_while_its_connection_is_cut_and_its_server_is_killed() {
    let mut stage = Stage::introduced();
    let on = stage.host.on("root");
    let started = stage.run(&on, &["--detach", "--ttl", "10m", "--name", "count"], COUNT);
    assert_eq!(started.code, 0, "{started:?}");
    stage.home.wait_for_running("count");
    let lines = || stage.home.ok(&["logs", "count"]).lines().count();
    wait_until("some output", || lines() > 3);
    stage.host.cut_connections();
    let before = lines();
    wait_until("output behind the cut", || lines() > before + 5);
    let before = lines();
    stage.kill_server();
    // Nothing of the connection is left here, and the program goes on there.
    assert!(stage.host.left().contains("sandbox"), "{}", stage.host.left());
    stage.serve();
    stage.home.wait_for_running("count");
    wait_until("output behind the restart", || {
        stage.home.ok(&["logs", "count"]).lines().count() > before + 5
    });
    let log = stage.home.ok(&["logs", "count"]);
    let whole: Vec<String> = (0..log.lines().count()).map(|n| format!("line {n}")).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), whole, "the log has lost or doubled something");
    assert_eq!(stage.home.ok(&["exec", "count", "--", "busybox", "sh", "-c", "echo in"]).trim(), "in");
    stage.home.ok(&["rm", "count"]);
    stage.nothing_is_left();
}

#[test]
fn a_lease_ends_on_the_host_where_the_server_is_dead() {
    let mut stage = Stage::introduced();
    let on = stage.host.on("root");
    // The lease begins with the order: on a busy machine a short one is over before the host has the agent.
    let name = ["15s", "60s", "150s"].into_iter().find_map(|ttl| {
        let name = format!("lease-{ttl}");
        let started = stage.run(&on, &["--detach", "--ttl", ttl, "--grace", "0s", "--name", &name], COUNT);
        assert_eq!(started.code, 0, "{started:?}");
        wait_until("it to run or to be over", || {
            matches!(&*stage.home.state(&name), "running" | "gone" | "expired" | "failed")
        });
        (stage.home.state(&name) == "running").then_some(name)
    });
    let name = name.expect("it runs");
    stage.kill_server();
    assert!(!stage.host.left().is_empty());
    stage.nothing_is_left();
    // It is up, as it was before.
    assert_eq!(stage.host.sh("echo up").stdout, "up\n");
    stage.serve();
    wait_until("the machine to be gone", || matches!(&*stage.home.state(&name), "gone" | "expired"));
}

#[test]
fn two_machines_share_a_host_and_each_takes_only_its_own_away() {
    let stage = Stage::introduced();
    let on = stage.host.on("root");
    for name in ["one", "two"] {
        let started = stage.run(&on, &["--detach", "--name", name, "--memory", "64M"], COUNT);
        assert_eq!(started.code, 0, "{started:?}");
        stage.home.wait_for_running(name);
    }
    assert_eq!(
        stage.host.sh("ls /var/lib/calve-lent/store | wc -l; ls /var/lib/calve-lent/m | wc -l").stdout,
        "1\n2\n"
    );
    stage.home.ok(&["rm", "one"]);
    wait_until("one to be gone", || stage.host.sh("ls /var/lib/calve-lent/m").stdout.lines().count() == 1);
    assert_eq!(stage.home.ok(&["exec", "two", "--", "busybox", "sh", "-c", "echo in"]).trim(), "in");
    // A keeper that is killed is no way to stay: the next who looks ends what it kept.
    stage.host.sh("pkill -9 -f '[a]gent-.* lend --base' ; true");
    let ran = stage.run(&on, &[], "echo three");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "three\n"), "{ran:?}");
    wait_until("two to be known as gone", || stage.home.state("two") != "running");
    stage.nothing_is_left();
}

#[test]
fn a_full_disk_is_one_sentence_and_leaves_nothing() {
    // Too small for the agent, and then large enough for it but not for the closure.
    let agent_mib = std::fs::metadata(agent()).unwrap().len() >> 20;
    for disk_mib in [3, agent_mib + 8] {
        let stage = Stage::set(disk_mib);
        stage.host.introduce();
        stage.home.app();
        std::fs::write(stage.home.path().join("app/big"), vec![1; 16 << 20]).unwrap();
        let full = stage.run(&stage.host.on("root"), &[], "true");
        assert!(full.code == 125 && full.stderr.contains("No space left"), "{full:?}");
        stage.nothing_is_left();
    }
}

#[test]
fn a_user_becomes_root_where_sudo_lets_them_and_goes_through_a_bastion() {
    let stage = Stage::introduced();
    let script = "echo $(id -u) at $(hostname)";
    // As a user without sudo, the sandbox is the user's own.
    let pi = stage.run(&stage.host.on("pi"), &[], script);
    assert!(pi.code == 0 && pi.stdout.starts_with("0 at run-"), "{pi:?}");
    stage.nothing_is_left();
    let admin =
        stage.command(&stage.host.on("admin"), &["--name", "rooted"], "echo up; sleep 1000").spawn().unwrap();
    stage.home.wait_for_running("rooted");
    assert_eq!(
        stage.host.sh("ls /var/lib/calve-lent/m | wc -l; ls /home/admin/.calve-lent 2>&1 | wc -l").stdout,
        "1\n1\n"
    );
    stage.home.ok(&["rm", "rooted"]);
    finish(admin);
    stage.nothing_is_left();
    let inner = stage.run("ssh://root@inner", &[], script);
    assert!(inner.code == 0, "{inner:?}");
    stage.nothing_is_left();
}
