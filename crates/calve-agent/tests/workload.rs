//! Workloads in an agent without walls: output, input, stops, restarts, health.

mod support;

use calve_wire::agent::{Phase, ToAgent};
use calve_wire::frame::Channel;
use calve_wire::machine::{ExitCause, HealthCheck, Probe, Restart};
use support::{Machine, command, is_alive, shell, wait_for};

#[test]
fn both_outputs_come_apart_and_the_exit_code_is_the_programs() {
    let machine = Machine::start();
    let mut client = machine.connect();
    assert_eq!(client.status.as_ref().map(|status| status.phase), Some(Phase::Waiting));
    client.start("echo out; echo err >&2; exit 7", Restart::Never);
    client.start("echo twice", Restart::Never);
    let status = client.until_ended();
    assert_eq!(client.output(Channel::Stdout), b"out\n");
    assert_eq!(client.output(Channel::Stderr), b"err\n");
    let exit = status.last_exit.expect("it ended");
    assert_eq!((exit.code, exit.signal, exit.cause, status.starts), (Some(7), None, ExitCause::Normal, 1));
}

#[test]
fn input_reaches_the_program_and_its_end_too() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start_with("wc -c", Restart::Never, None, true);
    client.data_all(0, &vec![b'x'; 3_000_000]);
    client.until_ended();
    assert_eq!(client.text().trim(), "3000000");
}

#[test]
fn a_program_without_input_reads_an_empty_one_and_one_that_ignores_it_blocks_nobody() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("cat; echo done", Restart::Never);
    client.data_all(0, &vec![b'x'; 1_000_000]);
    client.until_ended();
    assert_eq!(client.text(), "done\n");
}

#[test]
fn a_program_that_cannot_start_says_why() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut program = shell("", false);
    program.path = "/nonexistent/program".to_owned();
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    let status = client.until_ended();
    let exit = status.last_exit.expect("told");
    assert_eq!((exit.cause, exit.code), (ExitCause::NotStarted, Some(127)));
    assert!(status.notes.iter().any(|note| note.contains("does not exist")), "{:?}", status.notes);
}

#[test]
fn an_environment_beyond_the_kernels_limit_is_named() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut program = shell("true", false);
    program.env.extend((0..30).map(|n| (format!("V{n}"), "x".repeat(100_000))));
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    let status = client.until_ended();
    assert!(
        status.notes.iter().any(|note| note.contains("larger than the kernel takes")),
        "{:?}",
        status.notes
    );
}

#[test]
fn a_stop_lets_the_program_end_by_itself() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done", Restart::Always);
    client.until(|client| client.text().contains("up"));
    client.send(&ToAgent::Stop { grace_ms: 60_000 });
    let status = client.until_ended();
    assert_eq!(status.last_exit.expect("it ended").code, Some(3));
    assert!(client.text().ends_with("bye\n"));
}

#[test]
fn a_program_that_ignores_the_stop_is_killed_with_all_that_it_left_behind() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let script = "trap '' TERM; setsid sleep 98761 & echo up; while :; do sleep 0.01; done";
    client.start(script, Restart::Never);
    client.until(|client| client.text().contains("up"));
    wait_for("the background process", || is_alive(&["sleep", "98761"]));
    client.send(&ToAgent::Stop { grace_ms: 3_600_000 });
    client.until_phase(Phase::Stopping);
    client.send(&ToAgent::Stop { grace_ms: 50 });
    let status = client.until_ended();
    assert_eq!(status.last_exit.expect("it ended").signal, Some(9));
    assert!(!is_alive(&["sleep", "98761"]));
}

#[test]
fn a_background_process_that_holds_the_output_does_not_hold_the_job() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("(sleep 98762; echo late) & echo early; exit 0", Restart::Never);
    client.until_ended();
    assert_eq!(client.text(), "early\n");
    assert!(!is_alive(&["sleep", "98762"]));
}

#[test]
fn a_program_that_closes_its_output_goes_on() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("exec >&- 2>&-; sleep 0.2; exit 4", Restart::Never);
    let status = client.until_ended();
    assert_eq!(status.last_exit.expect("it ended").code, Some(4));
}

#[test]
fn a_failing_service_is_started_again_with_pauses() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let counter = machine.path("counter");
    let script = format!("echo x >> {0}; test $(wc -l < {0}) -ge 4", counter.display());
    client.start(&script, Restart::OnFailure);
    let status = client.until_ended();
    assert_eq!((status.starts, status.last_exit.expect("it ended").code), (4, Some(0)));
    assert!(client.statuses.iter().any(|status| status.phase == Phase::BackingOff));
}

#[test]
fn a_signal_goes_to_the_program() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("trap 'echo got; exit 0' USR1; echo up; while :; do sleep 0.01; done", Restart::Never);
    client.until(|client| client.text().contains("up"));
    client.send(&ToAgent::Signal { signal: 10 });
    client.until_ended();
    assert!(client.text().contains("got"));
}

#[test]
fn health_follows_the_probe_and_an_unhealthy_service_is_restarted() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let sick = machine.path("sick");
    let argv = ["/bin/sh", "-c", &format!("! test -e {}", sick.display())].map(str::to_owned).into();
    let check =
        HealthCheck { probe: Probe::Command { argv }, interval_ms: 300, timeout_ms: 20_000, retries: 2 };
    client.start_with(
        &format!("rm -f {}; echo up; exec sleep 98763", sick.display()),
        Restart::OnFailure,
        Some(check),
        false,
    );
    // The script has removed what is written below, so that it does not do so later.
    client.until(|client| client.text() == "up\n");
    client.until(|client| client.status.as_ref().is_some_and(|status| status.healthy == Some(true)));
    std::fs::write(&sick, "").expect("written");
    client.until(|client| client.status.as_ref().is_some_and(|status| status.starts >= 2));
    client.until(|client| client.status.as_ref().is_some_and(|status| status.healthy == Some(true)));
    client.send(&ToAgent::Stop { grace_ms: 0 });
    client.until_ended();
}

#[test]
fn health_by_tcp_http_and_command_is_seen_with_the_reason() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 512];
            let count = stream.read(&mut request).unwrap_or(0);
            let good = request[..count].starts_with(b"GET /health HTTP/1.1\r\n");
            let _ = stream.write_all(if good {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            } else {
                b"HTTP/1.1 404 No\r\n\r\n"
            });
        }
    });
    let cases = [
        (Probe::Tcp { port }, None),
        (Probe::Http { port, path: "/health".to_owned() }, None),
        (Probe::Http { port, path: "/other".to_owned() }, Some("gave 404")),
        (Probe::Tcp { port: 1 }, Some("port 1: Connection refused")),
        (Probe::Command { argv: vec!["/no/such/probe".to_owned()] }, Some("/no/such/probe does not exist")),
        (Probe::Command { argv: vec!["false".to_owned()] }, Some("\"false\" ended with exit code 1")),
    ];
    for (probe, failure) in cases {
        let machine = Machine::start();
        let mut client = machine.connect();
        let check = HealthCheck { probe, interval_ms: 20, timeout_ms: 20_000, retries: 2 };
        client.start_with("exec sleep 98764", Restart::Never, Some(check), false);
        let expected = Some(failure.is_none());
        client.until(|client| client.status.as_ref().is_some_and(|status| status.healthy == expected));
        let reason = client.status.as_ref().and_then(|status| status.unhealthy_because.clone());
        assert_eq!(reason.is_some(), failure.is_some(), "{reason:?}");
        assert!(reason.unwrap_or_default().contains(failure.unwrap_or_default()), "not {failure:?}");
    }
}

#[test]
fn a_machine_without_a_program_takes_commands_until_it_is_stopped() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.send(&ToAgent::Start { program: None, restart: Restart::Never, health: None });
    client.until_phase(Phase::Running);
    let stream = client.open(command(&["sleep", "98765"]));
    client.until(|client| client.streams[&stream].opened);
    client.send(&ToAgent::Stop { grace_ms: 60_000 });
    let ended = client.end_of(stream);
    assert_eq!(ended.ended.expect("told").expect("it ran").expect("a command").signal, Some(9));
    client.until_phase(Phase::Ended);
    let refused = client.exec("true");
    assert!(refused.ended.expect("told").expect_err("refused").contains("has ended"));
}

#[test]
fn a_work_tree_is_there_before_the_start() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut program = shell("pwd", false);
    program.cwd = Some(machine.path("work").display().to_string());
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    let status = client.until_ended();
    assert!(status.notes.iter().any(|note| note.contains("cannot be entered")), "{:?}", status.notes);
}

#[test]
fn a_program_has_three_descriptors_and_its_own_session() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("ls /proc/self/fd; cut -d' ' -f6 /proc/$$/stat; echo $$", Restart::Never);
    client.until_ended();
    let text = client.text();
    let lines: Vec<&str> = text.lines().collect();
    // The fourth one is the directory that `ls` itself reads.
    assert_eq!(lines[..4], ["0", "1", "2", "3"]);
    assert_eq!(lines[4], lines[5], "its session is not its own");
}
