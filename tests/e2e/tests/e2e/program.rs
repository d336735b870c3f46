//! `calve run` of programs in the sandbox.

use std::io::Write;
use std::process::Stdio;

use e2e::{Home, Ran, finish, kill, wait_until};

fn shell<'a>(app: &'a str, script: &'a str) -> Vec<&'a str> {
    vec!["run", app, "--", "sh", "-c", script]
}

#[test]
fn output_comes_apart_and_the_exit_code_is_the_programs_own() {
    let home = Home::new();
    let ran = home.run(&shell(&home.app(), "echo out; echo err >&2; exit 7"));
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    let ran = home.run(&shell(&home.app(), "kill -TERM $$"));
    assert_eq!(ran.code, 128 + 15, "{ran:?}");
}

#[test]
fn arguments_environment_and_stdin_reach_the_program() {
    let home = Home::new();
    let env_file = home.path().join("env");
    std::fs::write(&env_file, "# a comment\nFROM_FILE=two words\n").unwrap();
    let app = home.app();
    let mut command =
        home.command(["run", "-e", "GIVEN=1", "--env-file", env_file.to_str().unwrap(), &app, "--"]);
    command.args(["sh", "-c", "echo $GIVEN $FROM_FILE $1; cat", "sh", "--greeting"]);
    command.env("HIDDEN", "secret").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin").unwrap();
    let ran = finish(child);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1 two words --greeting\nfrom stdin"), "{ran:?}");
    let env = home.ok(&["run", &app, "--", "env"]);
    assert!(!env.contains("HIDDEN"), "the client's environment leaked: {env}");
}

#[test]
fn binary_output_of_megabytes_arrives_byte_for_byte() {
    let home = Home::new();
    let script = "head -c 20000000 /dev/urandom > /tmp/x; md5sum < /tmp/x >&2; cat /tmp/x";
    let output = home.command(shell(&home.app(), script)).output().unwrap();
    assert_eq!(output.stdout.len(), 20_000_000, "{}", String::from_utf8_lossy(&output.stderr));
    let sum = std::process::Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut sum = sum.unwrap();
    sum.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    assert_eq!(finish(sum).stdout, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_program_sees_its_closure_and_nothing_of_the_host() {
    let home = Home::new();
    let app = home.app();
    let script = "ls /nix/store | wc -l; ls /home 2>/dev/null | wc -l; ps -o pid | wc -l; touch /nix/store/x; id -u; hostname";
    let ran = home.run(&["run", "--name", "walled", &app, "--", "sh", "-c", script]);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("1", "0"), "{ran:?}");
    assert!(lines[2].parse::<u32>().unwrap() <= 6, "sees foreign processes: {ran:?}");
    assert!(ran.stderr.contains("Read-only file system"), "the store is writable: {ran:?}");
    assert_eq!(lines[4], "walled");
    let ran = home.run(&shell(&app, "mount -t tmpfs x /tmp; unshare -r true; ip link | grep -c '^[0-9]'"));
    assert_eq!(ran.stdout.trim(), "1", "more than a loopback: {ran:?}");
    assert!(ran.stderr.contains("mount: permission denied"), "{ran:?}");
    assert!(ran.stderr.contains("unshare(0x10000000): Operation not permitted"), "{ran:?}");
}

#[test]
fn a_lone_static_binary_and_a_symlink_to_a_store_path_run() {
    let home = Home::new();
    let lone = home.path().join("lone");
    std::fs::copy("/bin/busybox", &lone).unwrap();
    // A lone file's base name in the store is <hash>-lone: busybox needs to be told its applet by the first argument.
    let ran = home.run(&["run", "-e", "X=1", lone.to_str().unwrap(), "--", "true"]);
    assert!(ran.code == 0 || ran.stderr.contains("applet not found"), "{ran:?}");
    let stored = home.json(&["ps", "-a"]);
    let runs = stored[0]["runs"].as_str().unwrap();
    assert!(runs.ends_with("-lone") && runs.starts_with("/nix/store/"), "{runs}");
    let expected = std::process::Command::new("nix-store").args(["--add"]).arg(&lone).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&expected.stdout).trim(),
        runs,
        "the very path that nix-store --add gives"
    );
}

#[test]
fn limits_hold_and_their_kills_are_told() {
    let home = Home::new();
    let app = home.app();
    let hog = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let ran = home.run(&["run", "--name", "hog", "--memory", "32M", &app, "--", "sh", "-c", hog]);
    assert_eq!(ran.code, 128 + 9, "{ran:?}");
    assert_eq!(home.json(&["status", "hog"])["exit"]["cause"], "out-of-memory");
    assert!(ran.stderr.contains("memory"), "the user is told why: {ran:?}");
    // Files in /tmp are memory: they outlive the program, and starting it again would not help.
    let fill = ["dd", "if=/dev/zero", "of=/tmp/x", "bs=64k", "count=2000"];
    for (name, kind) in [("full", "job"), ("again", "service")] {
        home.ok(&[&["run", "-d", "--name", name, "--kind", kind, "--memory", "32M", &app, "--"], &fill[..]]
            .concat());
        home.wait_for_state(name, "gone");
        let status = home.json(&["status", name]);
        assert_eq!(status["exit"]["cause"], "out-of-memory", "{status}");
        assert!(status["messages"].to_string().contains("/tmp"), "{status}");
    }
    let bomb = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo started";
    let ran = home.run(&["run", "--pids", "8", &app, "--", "sh", "-c", bomb]);
    assert!(ran.stderr.contains("can't fork"), "{ran:?}");
}

#[test]
fn ctrl_c_lets_go_of_the_machine() {
    let home = Home::new();
    let app = home.app();
    let mut command = home.command(["run", "--name", "held", &app, "--", "sleep", "1000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    home.wait_for_running("held");
    kill(i32::try_from(child.id()).unwrap(), 2);
    let ran = finish(child);
    assert!(ran.code == 128 + 2 || ran.code == 128 + 15, "{ran:?}");
    wait_until("the machine to be gone", || home.state("held") == "gone");
}

#[test]
fn the_terminal_dying_does_not_leak_the_machine() {
    let home = Home::new();
    let app = home.app();
    let mut command = home.command(["run", "--name", "held", "--grace", "1s", &app, "--", "sleep", "1000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    home.wait_for_running("held");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the machine to be gone", || home.state("held") == "gone");
}

#[test]
fn a_program_that_closes_its_output_runs_on() {
    let home = Home::new();
    let ran = home.run(&shell(&home.app(), "exec >&- 2>&-; sleep 0.3; exit 3"));
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
}

#[test]
fn stop_terminates_then_kills_the_whole_group() {
    let home = Home::new();
    let app = home.app();
    let stubborn = "trap '' TERM; sleep 1000 & trap 'echo polite' TERM; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--name", "stubborn", &app, "--", "sh", "-c", stubborn]);
    home.wait_for_running("stubborn");
    home.ok(&["stop", "--grace", "500ms", "stubborn"]);
    assert_eq!(home.state("stubborn"), "gone");
    assert!(home.ok(&["logs", "stubborn"]).contains("polite"));
    assert!(home.processes().is_empty(), "something is alive: {:?}", home.processes());
}

#[test]
fn fifty_at_once_get_fifty_machines_and_fifty_numbers() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["ps"]);
    let children: Vec<_> = (0..50)
        .map(|_| {
            let mut command = home.command(["run", "-d", &app, "--", "sh", "-c", "echo $(hostname)"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ran: Vec<Ran> = children.into_iter().map(finish).collect();
    assert!(ran.iter().all(|r| r.code == 0), "{ran:#?}");
    let mut names: Vec<_> = ran.iter().map(|r| r.stdout.trim().to_owned()).collect();
    names.sort();
    let mut expected: Vec<_> = (1..=50).map(|n| format!("run-{n}")).collect();
    expected.sort();
    assert_eq!(names, expected);
    for name in &names {
        home.ok(&["wait", name]);
        assert_eq!(home.ok(&["logs", name]).trim(), name);
    }
}
