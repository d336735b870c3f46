//! `calve run` and `exec` against a server that does what it is told: streams, signals, ends.

mod fake;

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use calve_wire::api::{Problem, ProblemKind, StreamControl};
use calve_wire::frame::Channel::{Console, Stderr, Stdout};
use fake::{
    Fake, STORE_PATH, Step, eventually, exit, exited, finish, machine, signal, static_program, stderr,
    stdout, wait_for,
};
use serde_json::json;

/// The arguments of a run; what it runs does not matter, as the server is told what to do.
const RUN: [&str; 2] = ["run", "/bin/busybox"];

#[test]
fn output_comes_apart_and_byte_by_byte_and_the_code_is_the_program_s_own() {
    let fake = Fake::start();
    let noise: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut steps: Vec<Step> = noise.chunks(60_000).map(|chunk| Step::Send(Stdout, chunk.to_vec())).collect();
    steps.insert(1, Step::Send(Stderr, b"talk \xff\0".to_vec()));
    steps.insert(2, Step::Send(Console, b"[    0.0] booting".to_vec()));
    steps.push(Step::Send(Stdout, Vec::new()));
    steps.push(exit(3));
    fake.socket(steps);
    let output = fake.run(&RUN);
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout == noise);
    assert_eq!(output.stderr, b"talk \xff\0");
    assert!(fake.requests().iter().any(|(line, _)| line == "GET /v1/machines/run-1/attach?hold=true"));
}

#[test]
fn signals_and_memory_are_told_by_code_and_word() {
    for (how, code, word) in [
        (json!({"signal": 11, "cause": "normal"}), 139, ""),
        (json!({"signal": 9, "cause": "out-of-memory"}), 137, "its limit is 64M"),
        (json!({"code": 127, "cause": "not-started"}), 127, "could not be started"),
        (json!({"cause": "machine-lost"}), 125, "went away"),
    ] {
        let fake = Fake::start();
        let mut machine = machine("run-1", "job");
        machine["spec"]["limits"] = json!({"memory_bytes": 64 << 20});
        fake.answer("POST /v1/machines", 201, &machine);
        fake.socket([exited(how)]);
        let output = fake.run(&RUN);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

#[test]
fn limits_that_did_not_hold_are_named() {
    let fake = Fake::start();
    let mut limited = machine("run-1", "job");
    limited["spec"]["limits"] = json!({"pids": 5});
    limited["messages"] = json!(["the pids limit is not enforced: no cgroup"]);
    fake.answer("POST /v1/machines", 201, &limited);
    fake.answer(&format!("GET /v1/machines/{}", limited["id"].as_str().unwrap()), 200, &limited);
    fake.socket([exited(json!({"code": 0, "cause": "normal"}))]);
    let output = fake.run(&RUN);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "note: the pids limit is not enforced: no cgroup\n");
}

#[test]
fn a_refusal_is_a_sentence_with_a_hint_and_the_right_code() {
    let fake = Fake::start();
    let problem = Problem::new(ProblemKind::Unusable, "no driver can do it").hint("see `calve doctor`");
    fake.answer("POST /v1/machines", 422, &serde_json::to_value(&problem).unwrap());
    let output = fake.run(&RUN);
    assert_eq!(stderr(&output), "error: no driver can do it\nhint: see `calve doctor`\n");
    assert_eq!(output.status.code(), Some(125));
    let fake = Fake::start();
    let problem = Problem::new(ProblemKind::Internal, "it could not be made");
    fake.socket([Step::Say(StreamControl::Error { problem })]);
    let output = fake.run(&RUN);
    assert_eq!(
        (stderr(&output).as_str(), output.status.code()),
        ("error: it could not be made\n", Some(125))
    );
}

#[test]
fn standard_input_goes_to_the_program_and_ends_there() {
    let fake = Fake::start();
    fake.socket([Step::Echo, exit(0)]);
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 253) as u8).collect();
    let mut child = fake.calve(&RUN).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = wait_for(child);
    writing.join().unwrap();
    assert!(output.stdout == data, "{} of {} bytes", output.stdout.len(), data.len());
}

#[test]
fn an_input_that_stays_open_does_not_hold_up_the_end_and_none_is_told() {
    let fake = Fake::start();
    fake.socket([exit(0)]);
    let mut child = fake.calve(&RUN).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    assert_eq!(wait_for(child).status.code(), Some(0));
    drop(stdin);
    assert_eq!(fake.body("POST /v1/machines")["spec"]["workload"]["stdin"], json!(true));

    let fake = Fake::start();
    fake.socket([exit(0)]);
    assert_eq!(fake.run(&RUN).status.code(), Some(0));
    assert_eq!(fake.body("POST /v1/machines")["spec"]["workload"]["stdin"], json!(false));
}

#[test]
fn the_first_interrupt_stops_the_second_kills_the_third_leaves() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"up\n".to_vec()), Step::AwaitClient]);
    let mut child = fake.calve(&RUN).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let stops = || -> Vec<_> {
        let requests = fake.requests();
        let stops = requests.iter().filter(|(line, _)| line == "POST /v1/machines/run-1/stop");
        stops.map(|(_, body)| String::from_utf8_lossy(body).into_owned()).collect()
    };
    signal(child.id(), libc::SIGINT);
    eventually("a stop", || stops().len() == 1);
    signal(child.id(), libc::SIGINT);
    eventually("a kill", || stops().len() == 2);
    assert_eq!(stops(), ["{\"grace_ms\":null}", "{\"grace_ms\":0}"]);
    signal(child.id(), libc::SIGINT);
    assert_eq!(wait_for(child).status.code(), Some(130));
    eventually("the connection breaks", || fake.heard().gone);
}

#[test]
fn after_an_interrupt_output_goes_on_until_the_program_has_ended() {
    for (how, code) in
        [(json!({"signal": 15, "cause": "normal"}), 143), (json!({"code": 7, "cause": "normal"}), 7)]
    {
        let fake = Fake::start();
        fake.socket([
            Step::Send(Stdout, b"up\n".to_vec()),
            Step::AwaitRequest("POST /v1/machines/run-1/stop"),
            Step::Send(Stdout, b"bye\n".to_vec()),
            exited(how),
        ]);
        let mut child = fake.calve(&RUN).spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        signal(child.id(), libc::SIGTERM);
        let output = wait_for(child);
        assert_eq!((stdout(&output).as_str(), output.status.code()), ("bye\n", Some(code)));
    }
}

#[test]
fn other_signals_are_the_program_s() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"up\n".to_vec()), Step::AwaitControls(1), exit(0)]);
    let mut child = fake.calve(&RUN).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    signal(child.id(), libc::SIGUSR1);
    assert_eq!(wait_for(child).status.code(), Some(0));
    assert_eq!(fake.heard().texts, [format!("{{\"type\":\"signal\",\"signal\":{}}}", libc::SIGUSR1)]);
}

#[test]
fn when_nobody_reads_the_output_the_machine_is_let_go_of() {
    let fake = Fake::start();
    fake.socket([
        Step::Send(Stdout, b"up\n".to_vec()),
        Step::AwaitStdin(1),
        Step::Send(Stdout, b"more\n".to_vec()),
        Step::AwaitClient,
    ]);
    let mut child = fake.calve(&RUN).stdin(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    drop(child.stdout.take());
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let stdin = child.stdin.take();
    let output = wait_for(child);
    drop(stdin);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(141), ""));
    assert!(fake.requests().iter().any(|(line, _)| line.ends_with("/stop")));
}

#[test]
fn a_slow_reader_holds_up_neither_signals_nor_bytes() {
    let fake = Fake::start();
    let chunk = vec![b'x'; 64 * 1024];
    let mut steps = vec![Step::Send(Stdout, chunk.clone()); 40];
    steps.push(exit(0));
    fake.socket(steps);
    let mut child = fake.calve(&RUN).spawn().unwrap();
    // Nobody reads yet: the pipe is full long before the end.
    eventually("the session begins", || fake.requests().len() >= 2);
    signal(child.id(), libc::SIGINT);
    eventually("a stop", || fake.requests().iter().any(|(line, _)| line.ends_with("/stop")));
    let mut all = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 40 * chunk.len());
    wait_for(child);
}

#[test]
fn a_server_that_dies_is_replaced_and_the_output_goes_on_where_it_stopped() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"one\ntwo\n".to_vec()), Step::Send(Stderr, b"e".to_vec()), Step::Break]);
    fake.socket([
        Step::Send(Stdout, b"one\n".to_vec()),
        Step::Send(Stderr, b"e".to_vec()),
        Step::Send(Stdout, b"two\nthree\n".to_vec()),
        exit(0),
    ]);
    let output = fake.run(&RUN);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("one\ntwo\nthree\n", "e"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn detached_prints_the_name_or_the_machine() {
    let fake = Fake::start();
    let program = static_program().display().to_string();
    let output = fake.run(&["run", "-d", &program, "--", "sleep", "1"]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("run-1\n", Some(0)));
    let request = fake.body("POST /v1/machines");
    assert_eq!(request["ttl_ms"], json!(3_600_000));
    assert_eq!(request["spec"]["workload"]["args"], json!(["sleep", "1"]));
    assert_eq!(request["spec"]["workload"]["stdin"], json!(false));
    assert_eq!(request["spec"]["source"]["given"], json!(program));
    let output = fake.run(&["run", "-d", "--json", "--ttl", "none", &program]);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["name"], json!("run-1"));
}

#[test]
fn a_system_shows_its_console_until_interrupted() {
    let fake = Fake::start();
    fake.answer("POST /v1/machines", 201, &machine("run-1", "system"));
    fake.socket([
        Step::Send(Console, b"boot\n".to_vec()),
        Step::AwaitRequest("POST /v1/machines/run-1/stop"),
        Step::Say(StreamControl::Exit { exit: None, state: Some("gone".to_owned()), message: None }),
    ]);
    let mut child = fake.calve(&["run"]).spawn().unwrap();
    let mut boot = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut boot).unwrap();
    signal(child.id(), libc::SIGINT);
    let output = wait_for(child);
    assert_eq!(output.status.code(), Some(130));
    assert!(stderr(&output).contains("calve exec -it run-1"));
    assert_eq!(fake.body("POST /v1/machines")["spec"]["workload"], json!({"type": "base"}));
}

#[test]
fn exec_passes_command_input_and_code() {
    let fake = Fake::start();
    fake.socket([
        Step::AwaitStdinEnd,
        Step::Send(Stdout, b"out".to_vec()),
        Step::Send(Stderr, b"err".to_vec()),
        exit(4),
    ]);
    let mut child = fake
        .calve(&["exec", "-i", "-e", "A=1", "-w", "/tmp", "web", "--", "cat", "-n"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = wait_for(child);
    assert_eq!(
        (stdout(&output), stderr(&output), output.status.code()),
        ("out".to_owned(), "err".to_owned(), Some(4))
    );
    let heard = fake.heard();
    assert_eq!(heard.stdin, b"hello");
    let request: serde_json::Value = serde_json::from_str(&heard.texts[0]).unwrap();
    assert_eq!(
        request,
        json!({"argv": ["cat", "-n"], "env": {"A": "1"}, "cwd": "/tmp", "stdin": true, "tty": null})
    );
}

#[test]
fn exec_passes_interrupts_on_and_a_broken_connection_is_an_error() {
    let fake = Fake::start();
    fake.socket([
        Step::AwaitControls(1),
        Step::Send(Stdout, b"up\n".to_vec()),
        Step::AwaitControls(2),
        exit(130),
    ]);
    let mut child = fake.calve(&["exec", "web", "sleep", "9"]).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    signal(child.id(), libc::SIGINT);
    assert_eq!(wait_for(child).status.code(), Some(130));
    assert!(fake.heard().texts[1].contains("\"signal\":2"));

    let fake = Fake::start();
    fake.socket([Step::AwaitControls(1), Step::Break]);
    let output = fake.run(&["exec", "web", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).starts_with("error: the connection to the server broke off"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn ignored_signals_stay_ignored() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"up\n".to_vec()), Step::AwaitControls(1), exit(0)]);
    let mut command = fake.calve(&RUN);
    // SAFETY: signal(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    signal(child.id(), libc::SIGHUP);
    signal(child.id(), libc::SIGUSR1);
    assert_eq!(wait_for(child).status.code(), Some(0));
    assert!(!fake.requests().iter().any(|(line, _)| line.ends_with("/stop")));
}

#[test]
fn a_program_of_a_store_path_is_named_as_it_is_there() {
    let fake = Fake::start();
    let gone = format!("{STORE_PATH}/bin/x");
    let output = finish(&mut fake.calve(&["run", &gone]));
    assert_eq!(output.status.code(), Some(127), "{}", stderr(&output));
    assert!(fake.requests().is_empty());
}
