//! The server dies, the disk is full, the state is newer.

use std::process::Stdio;

use e2e::{Home, finish, kill, wait_until};

#[test]
fn a_killed_server_loses_no_machine_and_no_line_of_its_log() {
    let home = Home::new();
    let app = home.app();
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); [ $((i%10)) = 0 ] && sleep 0.01; done; sleep 1000";
    home.ok(&["run", "-d", "--name", "chatty", &app, "--", "sh", "-c", script]);
    home.wait_for_running("chatty");
    for _ in 0..3 {
        home.kill_server();
        home.ok(&["ps"]);
    }
    wait_until("the last line", || home.ok(&["logs", "chatty"]).contains("line 2999\n"));
    let expected: String = (0..3000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(home.ok(&["logs", "chatty"]), expected);
    assert_eq!(home.json(&["status", "chatty"])["starts"], 1, "adopted, not started again");
    assert_eq!(home.state("chatty"), "running");
}

#[test]
fn a_program_that_ends_while_the_server_is_dead_keeps_its_exit_code_and_output() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["run", "-d", "--name", "quiet", &app, "--", "sh", "-c", "sleep 1; echo last words; exit 9"]);
    home.wait_for_running("quiet");
    home.kill_server();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let ran = home.run(&["wait", "quiet"]);
    assert_eq!(ran.code, 9, "{ran:?}");
    assert_eq!(home.ok(&["logs", "quiet"]), "last words\n");
    assert_eq!(home.json(&["status", "quiet"])["exit"]["code"], 9);
}

#[test]
fn the_server_killed_at_many_moments_of_a_run_leaves_nothing_half_made() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["ps"]);
    for moment_ms in [0, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30, 40] {
        let pid = home.server_pid();
        let name = format!("cut-{moment_ms}");
        let mut command = home.command(["run", "-d", "--name", &name, &app, "--", "sleep", "1000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(moment_ms));
        kill(pid, 9);
        let ran = finish(child);
        // Whatever the client was told, the machine exists once or not at all, and can be removed.
        home.ok(&["ps"]);
        let listed = home.json(&["ps", "-a"]);
        let count = listed.as_array().unwrap().iter().filter(|m| m["name"] == name.as_str()).count();
        assert!(count <= 1 && (ran.code != 0 || count == 1), "{name}: {count}: {ran:?}");
        if count == 1 {
            home.wait_for_running(&name);
            home.ok(&["rm", &name]);
        }
    }
    wait_until("nothing to be left", || home.processes().is_empty());
}

#[test]
fn a_second_server_is_refused_and_a_newer_state_too() {
    let home = Home::new();
    home.ok(&["ps"]);
    let ran = home.run(&["server"]);
    assert!(ran.code != 0 && ran.stderr.contains("another calve server"), "{ran:?}");
    assert!(ran.stderr.contains(&home.server_pid().to_string()), "it says which: {ran:?}");
}

#[test]
fn the_server_goes_when_idle_and_stays_while_a_machine_lives() {
    let home = Home::new();
    let app = home.app();
    let mut server = home.command(["server", "--idle-exit", "1s"]).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the server", || home.path().join("run/calve.sock").exists());
    home.ok(&["run", "-d", "--name", "busy", "--ttl", "4s", "--grace", "0s", &app, "--", "sleep", "1000"]);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(server.try_wait().unwrap().is_none(), "it left a machine behind");
    wait_until("the server to go", || server.try_wait().unwrap().is_some());
    assert!(home.processes().is_empty());
}
