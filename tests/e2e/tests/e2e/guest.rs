//! Real QEMU guests.

use std::process::Stdio;

use e2e::{Home, finish, kill, wait_until};

#[test]
fn a_program_runs_in_a_guest_with_a_kernel_of_its_own() {
    let home = Home::new();
    let app = home.app();
    let script = "echo out; echo err >&2; uname -r; ls /nix/store | wc -l; touch /nix/store/x; exit 7";
    let ran = home.run(&["run", "--driver", "qemu", &app, "--", "sh", "-c", script]);
    assert_eq!(ran.code, 7, "{ran:?}");
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!((lines[0], lines[2]), ("out", "1"), "{ran:?}");
    assert_ne!(lines[1], host.trim());
    assert!(ran.stderr.contains("err") && ran.stderr.contains("Read-only"), "{ran:?}");
}

#[test]
fn a_guest_survives_the_server_and_ends_with_its_lease() {
    let home = Home::new();
    let app = home.app();
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let args = ["run", "-d", "--name", "vm", "--driver", "qemu", "--ttl", "40s", "--grace", "1s"];
    home.ok(&[&args[..], &[&app, "--", "sh", "-c", script]].concat());
    let lines = || home.ok(&["logs", "vm"]).lines().count();
    wait_until("some output", || lines() > 10);
    home.kill_server();
    let before = lines();
    wait_until("output that the next server took over", || lines() > before + 10);
    home.kill_server();
    wait_until("the guest to power itself off", || home.processes().is_empty());
    home.wait_for_state("vm", "expired");
    let log = home.ok(&["logs", "vm"]);
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "lost or doubled lines");
    assert!(numbers.len() > 20);
}

#[test]
fn the_base_guest_alone_can_be_execed_into() {
    let home = Home::new();
    home.ok(&["run", "-d", "--name", "base"]);
    home.wait_for_running("base");
    assert_eq!(home.json(&["status", "base"])["driver"], "qemu");
    let ran = home.run(&["exec", "base", "--", "sh", "-c", "echo $(hostname) $(id -u); exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "base 0\n"), "{ran:?}");
    home.ok(&["rm", "base"]);
}

#[test]
fn a_guest_whose_supervisor_is_killed_does_not_live_on() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["run", "-d", "--name", "vm", "--driver", "qemu", &app, "--", "sleep", "1000"]);
    home.wait_for_running("vm");
    let pattern = format!("guard.*{}", home.path().display());
    let guard = std::process::Command::new("pgrep").args(["-f", &pattern]).output().unwrap();
    let guard: i32 = String::from_utf8_lossy(&guard.stdout).lines().next().unwrap().parse().unwrap();
    kill(guard, 9);
    home.wait_for_state("vm", "failed");
    assert!(home.processes().is_empty());
}

#[test]
fn a_system_boots_from_its_own_kernel_and_init() {
    let home = Home::new();
    let toplevel = e2e::standin("build", &[]);
    home.ok(&["run", "-d", "--name", "sys", "--memory", "512M", &toplevel]);
    let sh = format!("{toplevel}/sw/bin/sh");
    // It is booting still: the command waits until the system holds its own programs.
    let early = home.ok(&["exec", "sys", "--", &sh, "-c", "cat /proc/1/comm"]);
    assert_eq!(early, "systemd\n");
    let status = home.json(&["status", "sys"]);
    assert_eq!((status["kind"].as_str(), status["driver"].as_str()), (Some("system"), Some("qemu")));
    wait_until("systemd to be up", || {
        home.run(&["exec", "sys", "--", &sh, "-c", "systemctl is-active standin.service"]).stdout
            == "active\n"
    });
    let ran = home.run(&[
        "exec",
        "sys",
        "--",
        &sh,
        "-c",
        "cat /proc/1/comm /proc/cmdline; readlink /run/current-system",
    ]);
    assert!(ran.stdout.starts_with("systemd\n") && ran.stdout.contains("standin.marker=1"), "{ran:?}");
    assert!(ran.stdout.contains(&toplevel), "{ran:?}");
    home.ok(&["stop", "--grace", "5s", "sys"]);
    assert_eq!(home.state("sys"), "gone");
}

#[test]
fn ctrl_c_ends_a_guest_that_is_still_booting() {
    let home = Home::new();
    let app = home.app();
    let mut command = home.command(["run", "--name", "vm", "--driver", "qemu", &app, "--", "sleep", "1000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("QEMU to run", || home.processes().iter().any(|line| line.contains("qemu-system")));
    kill(i32::try_from(child.id()).unwrap(), 2);
    finish(child);
    wait_until("nothing to be left", || home.processes().is_empty());
    assert_eq!(home.state("vm"), "gone");
}
