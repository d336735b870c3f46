//! Leases hold.

use e2e::{Home, wait_until};

#[test]
fn a_lease_stops_the_program_and_then_destroys_the_machine() {
    let home = Home::new();
    let app = home.app();
    let script = "trap 'echo told; exit 0' TERM; while :; do sleep 0.1; done";
    home.ok(&[
        "run", "-d", "--name", "brief", "--ttl", "2s", "--grace", "5s", &app, "--", "sh", "-c", script,
    ]);
    home.wait_for_state("brief", "expired");
    assert!(home.ok(&["logs", "brief"]).contains("told"));
    assert!(home.processes().is_empty());
}

#[test]
fn a_lease_can_be_extended_and_none_must_be_said() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["run", "-d", "--name", "long", "--ttl", "3s", &app, "--", "sleep", "1000"]);
    home.ok(&["extend", "long", "1h"]);
    home.ok(&["run", "-d", "--name", "short", "--ttl", "3s", "--grace", "1s", &app, "--", "sleep", "1000"]);
    home.ok(&["run", "-d", "--name", "endless", "--ttl", "none", &app, "--", "sleep", "1000"]);
    home.wait_for_state("short", "expired");
    assert_eq!(home.state("long"), "running");
    assert!(home.json(&["status", "endless"])["deadline_unix_ms"].is_null());
    assert!(home.json(&["status", "long"])["deadline_unix_ms"].is_u64());
}

#[test]
fn a_lease_ends_on_time_with_the_server_dead() {
    let home = Home::new();
    let app = home.app();
    let script = "trap 'echo result; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    home.ok(&[
        "run", "-d", "--name", "orphan", "--ttl", "3s", "--grace", "1s", &app, "--", "sh", "-c", script,
    ]);
    wait_until("its trap", || home.ok(&["logs", "orphan"]).contains("up"));
    home.kill_server();
    assert!(!home.processes().is_empty(), "the machine went with the server");
    wait_until("the machine to end by itself", || home.processes().is_empty());
    home.wait_for_state("orphan", "expired");
    // What nobody was there to hear was left for the next server.
    assert!(home.ok(&["logs", "orphan"]).contains("result"));
    assert_eq!(home.run(&["wait", "orphan"]).code, 3);
}
