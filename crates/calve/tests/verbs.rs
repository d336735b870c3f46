//! The other commands: what they ask of the server, what they print, how they end.

mod fake;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use calve_wire::api::{Problem, ProblemKind};
use calve_wire::frame::{Channel, Frame, LogEntry};
use fake::{Fake, Step, calve, eventually, finish, machine, signal, stderr, stdout, wait_for};
use serde_json::{Value, json};

fn problem(kind: ProblemKind, title: &str) -> Value {
    serde_json::to_value(Problem::new(kind, title)).unwrap()
}

#[test]
fn ps_prints_a_table_or_the_server_s_own_json() {
    let fake = Fake::start();
    let mut web = machine("web", "service");
    web["ready"] = json!(true);
    web["ports"] = json!([{"host_addr": "127.0.0.1", "host_port": 8080, "machine_port": 80}]);
    let mut done = machine("done", "job");
    done["state"] = json!("gone");
    done["exit"] = json!({"signal": 9, "cause": "out-of-memory"});
    fake.answer("GET /v1/machines", 200, &json!([web, done]));
    let output = fake.run(&["ps", "-a"]);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NAME  KIND     STATE"), "{text}");
    assert!(lines[1].contains("running (ready)") && lines[1].contains("127.0.0.1:8080→80"), "{text}");
    assert!(lines[2].contains("gone (signal 9, out-of-memory)"), "{text}");
    assert!(!text.contains('\x1b'));
    assert_eq!(fake.requests().last().unwrap().0, "GET /v1/machines?all=true");
    fake.answer_bytes("GET /v1/machines", 200, b"[ {\"name\": \"as it came\"} ]");
    assert_eq!(stdout(&fake.run(&["ps", "--json"])), "[ {\"name\": \"as it came\"} ]\n");
    assert_eq!(fake.requests().last().unwrap().0, "GET /v1/machines");
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let fake = Fake::start();
    fake.answer_bytes("GET /v1/machines", 200, &vec![b' '; 1_000_000]);
    let mut child = fake.calve(&["ps", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = wait_for(child);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(141), ""));
}

#[test]
fn an_unknown_machine_is_one_sentence_and_127() {
    let fake = Fake::start();
    fake.answer("GET /v1/machines/nix", 404, &problem(ProblemKind::NotFound, "there is no machine \"nix\""));
    for args in [&["status", "nix"][..], &["logs", "nix"], &["wait", "nix"], &["cp", "nix:/x", "-"]] {
        let output = fake.run(args);
        assert_eq!(
            (output.status.code(), stderr(&output).as_str()),
            (Some(127), "error: there is no machine \"nix\"\n")
        );
    }
    assert_eq!(fake.run(&["status", "No_Name"]).status.code(), Some(2));
}

#[test]
fn status_shows_the_whole_machine() {
    let fake = Fake::start();
    let mut web = machine("web", "service");
    web["messages"] = json!(["memory is not limited: no cgroup"]);
    web["spec"]["source"] = json!({"given": ".#web", "revision": "abc"});
    fake.answer("GET /v1/machines/web", 200, &web);
    let text = stdout(&fake.run(&["status", "web"]));
    for line in [
        "state     running",
        "revision  abc",
        "note      memory is not limited: no cgroup",
        "driver    sandbox on local",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(serde_json::from_slice::<Value>(&fake.run(&["status", "web", "--json"]).stdout).unwrap(), web);
}

fn log_frames() -> Vec<u8> {
    let mut bytes = Vec::new();
    let entries = [(Channel::Stdout, "one\ntw"), (Channel::Stderr, "oops\n"), (Channel::Stdout, "o\nthree")];
    for (seq, (channel, text)) in (1..).zip(entries) {
        let entry = LogEntry { seq, time_unix_ms: 1_767_323_045_678, channel, bytes: text.into() };
        Frame::Log(entry).encode(&mut bytes);
    }
    bytes
}

#[test]
fn logs_come_apart_with_times_or_as_objects() {
    let fake = Fake::start();
    fake.answer("GET /v1/machines/web", 200, &machine("web", "job"));
    fake.answer_bytes("GET /v1/machines/web/logs", 200, &log_frames());
    let output = fake.run(&["logs", "web", "--tail", "5"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("one\ntwo\nthree", "oops\n"));
    assert_eq!(fake.requests().last().unwrap().0, "GET /v1/machines/web/logs?tail=5&stream=stdout%2Cstderr");
    let output = fake.run(&["logs", "web", "-t"]);
    let time = "2026-01-02T03:04:05.678Z";
    assert_eq!(stdout(&output), format!("{time} one\n{time} two\n{time} three"));
    assert_eq!(stderr(&output), format!("{time} oops\n"));
    let output = fake.run(&["logs", "web", "-f", "--since", "10m", "--json"]);
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (lines.len(), &lines[1]["channel"], &lines[1]["text"]),
        (3, &json!("stderr"), &json!("oops\n"))
    );
    assert!(fake.requests().last().unwrap().0.contains("follow=true&since_ms="));
    fake.run(&["logs", "web", "--stderr"]);
    assert!(fake.requests().last().unwrap().0.ends_with("logs?stream=stderr"));
    fake.answer_bytes("GET /v1/machines/web/logs", 200, &log_frames()[..20]);
    assert_eq!(fake.run(&["logs", "web"]).status.code(), Some(125));
}

#[test]
fn wait_ends_with_the_first_program_that_did_not_succeed() {
    let fake = Fake::start();
    for (name, exit) in [
        ("good", json!({"code": 0, "cause": "normal"})),
        ("bad", json!({"code": 4, "cause": "normal"})),
        ("killed", json!({"signal": 9, "cause": "normal"})),
    ] {
        let mut ended = machine(name, "job");
        ended["state"] = json!("gone");
        ended["exit"] = exit;
        fake.answer(&format!("GET /v1/machines/{name}/wait"), 200, &ended);
    }
    let code = |args: &[&str]| fake.run(&[&["wait"], args].concat()).status.code();
    assert_eq!(code(&["good"]), Some(0));
    assert_eq!(code(&["good", "bad", "killed"]), Some(4));
    assert_eq!(code(&["killed"]), Some(137));
    let output = fake.run(&["wait", "--json", "good", "bad"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()[1]["name"], json!("bad"));
}

#[test]
fn stop_and_rm_return_once_nothing_is_left_and_do_all_they_can() {
    let fake = Fake::start();
    let id = machine("a", "job")["id"].as_str().unwrap().to_owned();
    fake.answer("POST /v1/machines/a/stop", 200, &machine("a", "job"));
    fake.answer("DELETE /v1/machines/a", 200, &machine("a", "job"));
    fake.answer("DELETE /v1/machines/b", 200, &machine("b", "job"));
    fake.answer("GET /v1/machines", 200, &json!([machine("a", "job"), machine("b", "job")]));
    fake.answer(&format!("GET /v1/machines/{id}/wait"), 200, &machine("a", "job"));
    let output = fake.run(&["stop", "--grace", "1s", "a", "gone"]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("a\n", Some(127)));
    assert_eq!(fake.body("POST /v1/machines/a/stop"), json!({"grace_ms": 1000}));
    assert!(fake.requests().iter().any(|(line, _)| line.ends_with("/wait")));
    let output = fake.run(&["rm", "--all", "-f"]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("a\nb\n", Some(0)));
    assert_eq!(fake.body("DELETE /v1/machines/b"), json!({"grace_ms": 0}));
    assert_eq!(fake.run(&["rm"]).status.code(), Some(2));
    assert_eq!(fake.run(&["rm", "--all", "a"]).status.code(), Some(2));
    assert_eq!(fake.run(&["rm", "-f", "--grace", "1s", "a"]).status.code(), Some(2));
}

#[test]
fn leases_records_and_events() {
    let fake = Fake::start();
    let mut web = machine("web", "service");
    web["deadline_unix_ms"] = json!(1_767_323_045_678_u64);
    fake.answer("POST /v1/machines/web/extend", 200, &web);
    assert_eq!(stdout(&fake.run(&["extend", "web", "30m"])), "web until 2026-01-02T03:04:05.678Z\n");
    assert_eq!(fake.body("POST /v1/machines/web/extend"), json!({"by_ms": 1_800_000}));
    assert_eq!(fake.run(&["extend", "web", "30"]).status.code(), Some(2));
    fake.answer(
        "POST /v1/prune",
        200,
        &json!({"machines": ["run-1"], "store_paths": ["/nix/store/x"], "freed_bytes": 2048}),
    );
    let output = fake.run(&["prune", "--unused-for", "2h"]);
    assert_eq!(fake.body("POST /v1/prune"), json!({"unused_ms": 7_200_000}));
    assert_eq!(
        (stdout(&output).as_str(), stderr(&output).as_str()),
        ("run-1\n", "1 machine and 1 store path removed, 2K freed\n")
    );
    let event = |time: u64, rest: Value| {
        let mut event =
            json!({"seq": 1, "time_unix_ms": time, "by": "uid:0", "machine": web["id"], "name": "web"});
        event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        event
    };
    let events = json!([
        event(1_767_323_045_678, json!({"event": "declared"})),
        event(u64::MAX / 2, json!({"event": "state", "state": "running"})),
    ]);
    fake.answer("GET /v1/events", 200, &events);
    let text = stdout(&fake.run(&["events"]));
    assert!(text.starts_with("2026-01-02T03:04:05.678Z  web  declared  (by uid:0)\n"), "{text}");
    assert_eq!(serde_json::from_slice::<Value>(&fake.run(&["events", "--json"]).stdout).unwrap(), events);
    // The server chooses what is recent.
    assert!(fake.run(&["events", "--json", "--since", "1h"]).status.success());
    let asked = fake.requests();
    assert!(
        asked.iter().any(|(line, _)| line.starts_with("GET /v1/events?since_ms=") && !line.contains("last"))
    );
    fake.answer("GET /v1/events?last=1", 200, &json!([events[1]]));
    let last = fake.run(&["events", "--json", "-n", "1"]);
    assert_eq!(serde_json::from_slice::<Value>(&last.stdout).unwrap(), json!([events[1]]));
    fake.answer_bytes(
        "GET /v1/events?follow=true&last=1000",
        200,
        format!("id: 1\ndata: {}\n\n", events[0]).as_bytes(),
    );
    // The connection has ended; the next one goes on behind what was shown.
    fake.answer("GET /v1/events?follow=true&since=1", 404, &json!({"kind": "not_found", "title": "enough"}));
    let output = fake.run(&["events", "-f", "--json"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap(), events[0]);
}

#[test]
fn doctor_says_what_is_missing_and_whether_anything_works() {
    let fake = Fake::start();
    let check = |area: &str, status: &str| {
        json!({"area": area, "name": "kvm", "status": status, "found": "no /dev/kvm", "cost": "ten times slower",
               "mend": if status == "ok" { Value::Null } else { json!("modprobe kvm") }})
    };
    fake.answer("GET /v1/doctor", 200, &json!([check("sandbox", "ok"), check("qemu", "degraded")]));
    let output = fake.run(&["doctor"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    for part in ["✓ ok", "! degraded", "costs: ten times slower", "mend:  modprobe kvm"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    fake.answer("GET /v1/doctor", 200, &json!([check("sandbox", "missing")]));
    assert_eq!(fake.run(&["doctor", "--json"]).status.code(), Some(1));
}

#[test]
fn files_go_into_a_machine_under_their_new_name_or_into_a_directory() {
    let fake = Fake::start();
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("f"), "hello").unwrap();
    let source = here.path().join("f").display().to_string();
    fake.answer("GET /v1/machines/web", 200, &machine("web", "job"));
    fake.answer("PUT /v1/machines/web/files", 204, &Value::Null);
    let missing = problem(ProblemKind::BadRequest, "/tmp/new cannot be read: No such file or directory");
    fake.answer("GET /v1/machines/web/files?path=/tmp/new", 400, &missing);
    let mut tree = tar::Builder::new(Vec::new());
    tree.append_dir("tmp", here.path()).unwrap();
    fake.answer_bytes("GET /v1/machines/web/files?path=/tmp", 200, &tree.into_inner().unwrap());
    fake.answer("GET /v1/machines/web/files?path=/tmp/new", 400, &missing);
    for (target, directory, name) in
        [("web:/tmp/new", "/tmp", "new"), ("web:/tmp", "/tmp", "f"), ("web:/", "/", "f")]
    {
        let output = fake.run(&["cp", &source, target]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let (line, body) = fake.requests().last().unwrap().clone();
        assert_eq!(line, format!("PUT /v1/machines/web/files?path={directory}"));
        let mut archive = tar::Archive::new(body.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some(name));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
    assert_eq!(fake.run(&["cp", &source, "web:/tmp/new/"]).status.code(), Some(127));
    assert_eq!(fake.run(&["cp", "/no/such", "web:/tmp"]).status.code(), Some(127));
    assert_eq!(fake.run(&["cp", "a", "b"]).status.code(), Some(2));
}

#[test]
fn archives_go_through_standard_input_and_output_untouched() {
    let fake = Fake::start();
    fake.answer("PUT /v1/machines/web/files", 204, &Value::Null);
    let bytes: Vec<u8> = (0..500_000u32).map(|n| (n % 249) as u8).collect();
    fake.answer_bytes("GET /v1/machines/web/files", 200, &bytes);
    assert!(fake.run(&["cp", "web:/etc", "-"]).stdout == bytes);
    let mut child = fake.calve(&["cp", "-", "web:/etc"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(wait_for(child).status.code(), Some(0));
    assert!(fake.requests().last().unwrap().1 == bytes);
}

#[test]
fn files_come_out_of_a_machine() {
    let fake = Fake::start();
    let here = tempfile::tempdir().unwrap();
    let mut tree = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o640);
    tree.append_data(&mut header, "hosts", &b"abc"[..]).unwrap();
    fake.answer_bytes("GET /v1/machines/web/files", 200, &tree.into_inner().unwrap());
    let into = here.path().display().to_string();
    assert_eq!(fake.run(&["cp", "web:/etc/hosts", &into]).status.code(), Some(0));
    assert_eq!(fs::read(here.path().join("hosts")).unwrap(), b"abc");
    assert_eq!(fake.run(&["cp", "web:/etc/hosts", &format!("{into}/mine")]).status.code(), Some(0));
    assert_eq!(fs::read(here.path().join("mine")).unwrap(), b"abc");
    assert_eq!(fake.requests().last().unwrap().0, "GET /v1/machines/web/files?path=/etc/hosts");
}

#[test]
fn a_forwarded_port_carries_both_ways_and_half_closes() {
    let fake = Fake::start();
    fake.answer("GET /v1/machines/web", 200, &machine("web", "service"));
    // The fake echoes behind a channel byte; the first byte of what is sent stands for it.
    fake.socket([Step::Echo, Step::Send(Channel::Stdin, Vec::new())]);
    let mut child = fake.calve(&["forward", "web", "0:80"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mut connection = std::net::TcpStream::connect(line.trim()).unwrap();
    connection.write_all(b"\0hello").unwrap();
    let mut back = [0; 6];
    connection.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x01hello");
    assert!(fake.requests().iter().any(|(line, _)| line == "GET /v1/machines/web/forward?port=80"));
    signal(child.id(), libc::SIGTERM);
    wait_for(child);
}

#[test]
fn a_server_far_away_is_reached_with_a_token() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).unwrap();
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").unwrap();
        String::from_utf8_lossy(&request[..length]).to_lowercase()
    });
    let home = tempfile::tempdir().unwrap();
    let mut command = calve(home.path(), &["ps", "--json"]);
    let output = finish(command.env("CALVE_SERVER", &url).env("CALVE_TOKEN", "s3cret"));
    assert_eq!(stdout(&output), "[]\n", "{}", stderr(&output));
    assert!(serving.join().unwrap().contains("authorization: bearer s3cret"));
    let mut command = calve(home.path(), &["ps"]);
    let output = finish(command.env("CALVE_SERVER", "http://127.0.0.1:1"));
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).contains("no calve server can be reached at http://127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
    let output = finish(calve(home.path(), &["ps"]).env("CALVE_SERVER", "ftp://x"));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn completions_know_commands_and_machines() {
    let fake = Fake::start();
    fake.answer("GET /v1/machines", 200, &json!([machine("web", "service"), machine("worker", "job")]));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&fake.run(&["completions", shell])).contains("COMPLETE="), "{shell}");
    }
    let mut command = fake.calve(&["--", "calve", "stop", "we"]);
    let output = finish(command.env("COMPLETE", "fish").env("_CLAP_COMPLETE_INDEX", "2"));
    assert!(stdout(&output).contains("web") && !stdout(&output).contains("worker"), "{}", stdout(&output));
}

#[test]
fn fifty_commands_at_once_start_one_server() {
    let home = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..50).map(|_| calve(home.path(), &["ps", "--json"]).spawn().unwrap()).collect();
    for child in children {
        let output = wait_for(child);
        assert_eq!(
            (stdout(&output).as_str(), output.status.code()),
            ("[]\n", Some(0)),
            "{}",
            stderr(&output)
        );
    }
    let status = finish(&mut calve(home.path(), &["server", "status", "--json"]));
    let info: Value = serde_json::from_slice(&status.stdout).unwrap();
    let pid = info["pid"].as_u64().unwrap();
    // In a session of its own: the end of this terminal is not its end.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid);
    let log = fs::read_to_string(home.path().join("data/server.log")).unwrap();
    assert_eq!(log.matches("serving").count(), 1, "{log}");
    assert_eq!(finish(&mut calve(home.path(), &["server", "stop"])).status.code(), Some(0));
    assert_eq!(finish(&mut calve(home.path(), &["server", "status"])).status.code(), Some(1));
    eventually("the server's process ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_server_that_cannot_start_is_said_with_its_own_words() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("data")).unwrap();
    fs::create_dir_all(home.path().join("data/lock")).unwrap();
    let output = finish(&mut calve(home.path(), &["ps"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).starts_with("error: the local server ended at its start: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_token_in_the_address_of_a_cache_is_never_printed() {
    let fake = Fake::start();
    let path = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";
    for address in ["http://user:SECRET@host", "user:SECRET@host", "ftp://SECRET@host"] {
        for args in [&["pull", "--from", address, path][..], &["push", "--to", address, path], &[address]] {
            let output = fake.run(args);
            assert_eq!(output.status.code(), Some(2), "{args:?}");
            assert!(!stderr(&output).contains("SECRET"), "{}", stderr(&output));
        }
        for args in [&["pull", path][..], &["pull", "--help"], &["push", "--help"]] {
            let output = finish(fake.calve(args).env("CALVE_CACHE", address));
            let said = stderr(&output) + &stdout(&output);
            assert!(!said.contains("SECRET"), "{said}");
        }
    }
}
