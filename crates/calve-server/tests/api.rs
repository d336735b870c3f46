//! The API through a real socket, with machines that are played.

mod support;

use std::time::Duration;

use calve_wire::frame::Frame;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use support::{DEADLINE, Home, Server};
use tokio_tungstenite::tungstenite::Message;

/// Everything that a socket brings until its last control message: the bytes by channel, and that message.
async fn drain(
    socket: &mut (impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin),
) -> (String, String, Value) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    loop {
        let message = tokio::time::timeout(DEADLINE, socket.next())
            .await
            .expect("a message")
            .expect("one more")
            .unwrap();
        match message {
            Message::Binary(bytes) => match bytes[0] {
                1 => stdout.push_str(std::str::from_utf8(&bytes[1..]).unwrap()),
                2 => stderr.push_str(std::str::from_utf8(&bytes[1..]).unwrap()),
                other => panic!("channel {other}"),
            },
            Message::Text(text) => return (stdout, stderr, serde_json::from_str(&text).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

async fn events_of(server: &Server, name: &str) -> Vec<String> {
    let events = server.get("/v1/events").await;
    let of = events.as_array().unwrap().iter().filter(|event| event["name"] == name);
    of.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_job_runs_and_its_exit_code_and_output_are_kept() {
    let home = Home::new();
    let server = home.serve().await;
    let name = server.create(home.job(&["out:hello\n", "err:oh\n", "exit:3"])).await;
    assert_eq!(name, "run-1");
    let ended = server.get("/v1/machines/run-1/wait").await;
    assert_eq!((&ended["state"], &ended["exit"]["code"]), (&json!("gone"), &json!(3)), "{ended}");
    assert_eq!(server.get("/v1/machines").await, json!([]));
    let all = server.get("/v1/machines?all=true").await;
    assert_eq!(
        (&all[0]["name"], &all[0]["kind"], &all[0]["driver"]),
        (&json!("run-1"), &json!("job"), &json!("sandbox"))
    );
    assert_eq!(home.driver.count(), 0);

    let (_, log) = server.ask_raw("GET", "/v1/machines/run-1/logs", Vec::new()).await;
    assert_eq!(&log[..], b"hello\noh\n");
    let (_, log) = server.ask_raw("GET", "/v1/machines/run-1/logs?stream=stderr", Vec::new()).await;
    assert_eq!(&log[..], b"oh\n");
    let request = hyper::Request::get("/v1/machines/run-1/logs").header("accept", "application/x-calve-log");
    let answer = server.send(request.body(Default::default()).unwrap()).await;
    let frames = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let (Frame::Log(entry), _) = Frame::decode(&frames).unwrap().unwrap() else { panic!("no log entry") };
    assert_eq!((entry.seq, &entry.bytes[..]), (1, &b"hello\n"[..]));
    let events = events_of(&server, "run-1").await;
    assert_eq!(events.first().map(String::as_str), Some("declared"));
    assert!(events.contains(&"exited".to_owned()) && events.contains(&"stopped".to_owned()), "{events:?}");
    server.stop().await;
}

#[tokio::test]
async fn attach_replays_takes_input_and_ends_behind_all_output() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["out:before ", "cat", "err:after", "exit:4"])).await;
    let mut socket = server.websocket("/v1/machines/run-1/attach").await;
    socket.send(Message::Binary(b"\0input ".to_vec().into())).await.unwrap();
    socket.send(Message::Binary(b"\0".to_vec().into())).await.unwrap();
    let (stdout, stderr, end) = drain(&mut socket).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("before input ", "after"));
    assert_eq!((&end["type"], &end["exit"]["code"]), (&json!("exit"), &json!(4)), "{end}");
    // Long after its end, it is all still there.
    server.until("run-1", "gone").await;
    let mut socket = server.websocket("/v1/machines/run-1/attach").await;
    let (stdout, _, end) = drain(&mut socket).await;
    assert_eq!(
        (stdout.as_str(), &end["exit"]["code"], &end["state"]),
        ("before input ", &json!(4), &json!("gone"))
    );
    server.stop().await;
}

#[tokio::test]
async fn signals_reach_the_program() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["out:up", "wait"])).await;
    let mut socket = server.websocket("/v1/machines/run-1/attach").await;
    assert!(matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
    socket.send(Message::text(r#"{"type":"signal","signal":2}"#)).await.unwrap();
    let (.., end) = drain(&mut socket).await;
    assert_eq!(end["exit"]["signal"], 2, "{end}");
    server.stop().await;
}

#[tokio::test]
async fn exec_runs_a_command_beside_the_program() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["wait"])).await;
    let mut socket = server.websocket("/v1/machines/run-1/exec").await;
    socket.send(Message::text(r#"{"argv":["echo","a"],"stdin":true}"#)).await.unwrap();
    socket.send(Message::Binary(b"\0 b".to_vec().into())).await.unwrap();
    socket.send(Message::Binary(b"\0".to_vec().into())).await.unwrap();
    let (stdout, _, end) = drain(&mut socket).await;
    assert_eq!((stdout.as_str(), &end["exit"]["code"]), ("echo a b", &json!(7)));
    for bad in [r#"{"argv":[]}"#, r#"{"argv":["a"],"shell":true}"#, r#"{"argv":["a\u0000"]}"#, "{", "[]"] {
        let mut socket = server.websocket("/v1/machines/run-1/exec").await;
        socket.send(Message::text(bad)).await.unwrap();
        let (.., end) = drain(&mut socket).await;
        assert_eq!(
            (&end["type"], &end["problem"]["type"]),
            (&json!("error"), &json!("bad-request")),
            "{bad}: {end}"
        );
    }
    assert!(events_of(&server, "run-1").await.contains(&"exec".to_owned()));
    server.ask("DELETE", "/v1/machines/run-1", Value::Null).await;
    server.stop().await;
}

#[tokio::test]
async fn ports_and_files_are_reached() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["wait"])).await;
    let mut socket = server.websocket("/v1/machines/run-1/forward?port=80").await;
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), "port 80: ");
    socket.send(Message::Binary("GET".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), "GET");

    let (status, tar) = server.ask_raw("GET", "/v1/machines/run-1/files?path=/etc", Vec::new()).await;
    assert_eq!((status.as_u16(), &tar[..]), (200, &b"/etc"[..]));
    let (status, problem) = server.ask("GET", "/v1/machines/run-1/files?path=/missing", Value::Null).await;
    assert_eq!((status.as_u16(), &problem["title"]), (400, &json!("there is no /missing in the machine")));
    let (status, problem) = server.ask("GET", "/v1/machines/run-1/files?path=etc", Value::Null).await;
    assert_eq!(status, 400, "{problem}");
    let (status, _) = server.ask_raw("PUT", "/v1/machines/run-1/files?path=/tmp", vec![7; 1 << 20]).await;
    assert_eq!(status, 204);
    assert_eq!(events_of(&server, "run-1").await.iter().filter(|event| *event == "copied").count(), 2);
    server.ask("DELETE", "/v1/machines/run-1", Value::Null).await;
    server.stop().await;
}

#[tokio::test]
async fn stop_extend_remove_and_prune() {
    let home = Home::new();
    let server = home.serve().await;
    let mut request = home.job(&["wait"]);
    request["name"] = json!("web");
    server.create(request.clone()).await;
    let (status, problem) = server.ask("POST", "/v1/machines", request.clone()).await;
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("conflict")), "{problem}");
    let before = server.until("web", "running").await["deadline_unix_ms"].as_u64().unwrap();
    let (_, after) = server.ask("POST", "/v1/machines/web/extend", json!({"by_ms": 5000})).await;
    assert_eq!(after["deadline_unix_ms"], before + 5000, "{after}");
    let (status, _) = server.ask("POST", "/v1/machines/web/stop", json!({"grace_ms": 100})).await;
    assert_eq!(status, 200);
    let ended = server.get("/v1/machines/web/wait").await;
    assert_eq!(
        (&ended["stop_reason"], &ended["exit"]["signal"]),
        (&json!("requested"), &json!(15)),
        "{ended}"
    );
    let (status, problem) = server.ask("POST", "/v1/machines/web/extend", json!({"by_ms": 5000})).await;
    assert_eq!(status, 409, "{problem}");

    // The name is held until the record is removed.
    let (status, _) = server.ask("POST", "/v1/machines", request.clone()).await;
    assert_eq!(status, 409);
    let (_, pruned) = server.ask("POST", "/v1/prune", Value::Null).await;
    assert_eq!(pruned["machines"], json!(["web"]));
    until_unknown(&server, "web").await;
    server.create(request).await;
    server.until("web", "running").await;
    let (status, _) = server.ask("DELETE", "/v1/machines/web", Value::Null).await;
    assert_eq!(status, 200);
    server.ask("GET", "/v1/machines/web/wait", Value::Null).await;
    until_unknown(&server, "web").await;
    assert_eq!(home.driver.count(), 0);
    // Who asked for what is on record, also of what was pruned.
    let events = server.get("/v1/events").await;
    let asked = ["declared", "extended", "stop-requested", "removed"];
    let audit: Vec<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["by"] != "loop")
        .map(|event| event["event"].as_str().unwrap())
        .filter(|event| asked.contains(event))
        .collect();
    assert_eq!(
        audit,
        ["declared", "extended", "stop-requested", "removed", "declared", "stop-requested"],
        "{events}"
    );
    server.stop().await;
}

#[tokio::test]
async fn prune_takes_store_paths_that_no_machine_runs() {
    let home = Home::new();
    let server = home.serve().await;
    let path = home.program.strip_prefix("/nix/store/").unwrap();
    let entry = home.dirs.store().join(format!(".valid/{path}.json"));
    let days_ago = std::time::SystemTime::now() - 3 * Duration::from_secs(24 * 3600);
    let prune = async || {
        std::fs::File::options().append(true).open(&entry).unwrap().set_modified(days_ago).unwrap();
        server.ask("POST", "/v1/prune", json!({"unused_ms": 0})).await.1["store_paths"].clone()
    };
    server.create(home.job(&["wait"])).await;
    server.until("run-1", "running").await;
    assert_eq!(prune().await, json!([]));
    server.ask("POST", "/v1/machines/run-1/stop", json!({})).await;
    server.get("/v1/machines/run-1/wait").await;
    // Used a moment ago is not unused, whatever is asked for.
    let (_, pruned) = server.ask("POST", "/v1/prune", json!({"unused_ms": 1})).await;
    assert_eq!(pruned["machines"], json!(["run-1"]));
    assert_eq!(prune().await, json!([home.program]));
    assert!(!entry.exists() && !home.dirs.store().join(path).exists());
    let (_, problem) = server.ask("POST", "/v1/machines", home.job(&["wait"])).await;
    assert_eq!(problem["type"], json!("not-found"), "{problem}");
    server.stop().await;
}

async fn until_unknown(server: &Server, name: &str) {
    let gone = async {
        while server.ask("GET", &format!("/v1/machines/{name}"), Value::Null).await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("the record goes");
}

#[tokio::test]
async fn fifty_at_once_get_fifty_names() {
    let home = Home::new();
    let server = home.serve().await;
    let creating = (0..50).map(|_| server.create(home.job(&["exit:0"])));
    let mut numbers: Vec<u32> = futures_util::future::join_all(creating)
        .await
        .iter()
        .map(|name| name.strip_prefix("run-").unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    for n in 1..=50 {
        assert_eq!(server.get(&format!("/v1/machines/run-{n}/wait")).await["state"], "gone");
    }
    server.stop().await;
}

#[tokio::test]
async fn bad_requests_get_one_sentence_and_leave_nothing() {
    let home = Home::new();
    let server = home.serve().await;
    let machines = "/v1/machines";
    let with = |pointer: &str, value: Value| {
        let mut request = home.job(&[]);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        request.pointer_mut(parent).unwrap()[key] = value;
        request
    };
    let nowhere = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello-2.12/bin/hello";
    let cases = [
        ("POST", machines, with("/colour", json!("red")), 400, "unknown field `colour`"),
        ("POST", machines, with("/spec/limits", json!({"cpus": 1})), 400, "unknown field `cpus`"),
        ("POST", machines, with("/ttl_ms", json!("1h")), 400, "invalid type"),
        ("POST", machines, with("/ttl_ms", json!(1)), 400, "is not between"),
        ("POST", machines, with("/name", json!("Web")), 400, "machine name"),
        ("POST", machines, with("/spec/workload/path", json!("/bin/sh")), 400, "is not inside /nix/store"),
        ("POST", machines, with("/spec/workload/path", json!(nowhere)), 404, "is not valid"),
        ("POST", machines, with("/spec/workload/path", json!(format!("{}/x", home.program))), 400, ""),
        ("POST", machines, with("/spec/driver", json!("qemu")), 422, "the driver qemu cannot be used"),
        ("POST", machines, with("/spec/driver", json!("kvm")), 400, "is no driver"),
        ("POST", machines, with("/spec/workload/env", json!({"A": "x".repeat(10_000_000)})), 400, "bytes"),
        ("POST", machines, json!([]), 400, ""),
        ("POST", machines, json!("x"), 400, ""),
        ("GET", "/v1/machines?al=1", Value::Null, 400, "unknown field `al`"),
        ("GET", "/v1/machines/none", Value::Null, 404, "no machine"),
        ("GET", "/v1/machines/none/wait", Value::Null, 404, "no machine"),
        ("GET", "/v1/machines/none/logs", Value::Null, 404, "no machine"),
        ("GET", "/v1/machines/%00/logs", Value::Null, 404, "no machine"),
        ("GET", "/v1/machines/%ff", Value::Null, 400, ""),
        ("GET", "/v1/machines/none/logs?stream=out", Value::Null, 400, "is no stream"),
        ("POST", "/v1/machines/none/stop", json!({"grace_ms": -1}), 400, "invalid value"),
        ("POST", "/v1/machines/none/extend", Value::Null, 400, "missing field `by_ms`"),
        ("GET", "/v1/machines/none/files", Value::Null, 400, "missing field `path`"),
        ("GET", "/v2", Value::Null, 404, "there is no /v2"),
        ("PATCH", "/v1/machines", Value::Null, 405, "cannot be asked with PATCH"),
    ];
    for (method, path, body, status, sentence) in cases {
        let (found, problem) = server.ask(method, path, body).await;
        assert_eq!(found.as_u16(), status, "{method} {path}: {problem}");
        let title = problem["title"].as_str().unwrap_or_else(|| panic!("{method} {path}: {problem}"));
        assert!(title.contains(sentence), "{method} {path}: {title:?} lacks {sentence:?}");
        assert!(!title.contains('\n') && title.len() < 600, "{title}");
    }
    for body in [&b"{"[..], b"\xff\xfe", b"null", &[b'['; 100_000]] {
        let (status, _) = server.ask_raw("POST", machines, body.to_vec()).await;
        assert_eq!(status, 400);
    }
    assert_eq!(server.get("/v1/machines?all=true").await, json!([]));
    assert_eq!(server.get("/v1/events").await, json!([]));
    // After all of that it still works.
    server.create(home.job(&["exit:0"])).await;
    server.get("/v1/machines/run-1/wait").await;
    server.stop().await;
}

#[tokio::test]
async fn an_unusable_driver_is_refused_with_what_mends_it() {
    let home = Home::new();
    *home.driver.missing.lock().unwrap() = Some("there are no namespaces".to_owned());
    let server = home.serve().await;
    let mut request = home.job(&["exit:0"]);
    request["spec"]["driver"] = json!("sandbox");
    let (status, problem) = server.ask("POST", "/v1/machines", request).await;
    assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("unusable")));
    assert!(problem["title"].as_str().unwrap().contains("there are no namespaces"), "{problem}");
    let checks = server.get("/v1/doctor").await;
    assert!(checks.as_array().unwrap().iter().any(|check| check["status"] == "missing"), "{checks}");
    server.stop().await;
}

#[tokio::test]
async fn events_are_streamed_as_they_happen() {
    let home = Home::new();
    let server = home.serve().await;
    let request = hyper::Request::get("/v1/events?follow=true").body(Default::default()).unwrap();
    let mut body = server.send(request).await.into_body();
    server.create(home.job(&["exit:0"])).await;
    let mut text = String::new();
    while !text.contains(r#""event":"stopped""#) {
        let frame =
            tokio::time::timeout(DEADLINE, http_body_util::BodyExt::frame(&mut body)).await.expect("events");
        text.push_str(std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap());
    }
    assert!(text.starts_with("id: 1\ndata: {\"seq\":1,"), "{text}");
    let uid = rustix::process::geteuid().as_raw();
    assert!(text.contains(&format!(r#""by":"uid:{uid}""#)) && text.contains(r#""by":"loop""#), "{text}");
    let since = server.get("/v1/events?since=1").await;
    assert_eq!(since[0]["seq"], 2);
    drop(body);
    server.stop().await;
}

#[tokio::test]
async fn events_of_a_time_and_the_last_ones_are_chosen_by_the_server() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["exit:0"])).await;
    server.until("run-1", "gone").await;
    let all = server.get("/v1/events").await;
    let all = all.as_array().unwrap();
    let last = server.get("/v1/events?last=2").await;
    assert_eq!(last.as_array().unwrap(), &all[all.len() - 2..]);
    let time = all.last().unwrap()["time_unix_ms"].as_u64().unwrap();
    let since = server.get(&format!("/v1/events?since_ms={time}")).await;
    let of_then: Vec<_> = all.iter().filter(|event| event["time_unix_ms"] == time).cloned().collect();
    assert_eq!(since, Value::Array(of_then));
    assert_eq!(server.get(&format!("/v1/events?since_ms={}", time + 1)).await, json!([]));
    server.stop().await;
}

#[tokio::test]
async fn a_program_that_keeps_falling_does_not_look_as_if_it_ran() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["back-off:4", "wait"])).await;
    let told = async {
        loop {
            let machine = server.get("/v1/machines/run-1").await;
            if machine["condition"] == "backing-off" {
                return machine;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let machine = tokio::time::timeout(DEADLINE, told).await.expect("it is told");
    assert_eq!((&machine["state"], &machine["restarts"]), (&json!("running"), &json!(3)));
    let listed = server.get("/v1/machines").await;
    assert_eq!((&listed[0]["condition"], &listed[0]["restarts"]), (&json!("backing-off"), &json!(3)));
    server.stop().await;
}

#[tokio::test]
async fn a_sandbox_has_no_console_and_says_so() {
    let home = Home::new();
    let server = home.serve().await;
    server.create(home.job(&["out:hello", "exit:0"])).await;
    server.until("run-1", "gone").await;
    let (status, problem) = server.ask("GET", "/v1/machines/run-1/logs?stream=console", Value::Null).await;
    assert_eq!(status, 400);
    assert_eq!(problem["title"], "run-1 is a sandbox, which has no console");
    let (status, log) = server.ask_raw("GET", "/v1/machines/run-1/logs?stream=stdout", Vec::new()).await;
    assert_eq!((status.as_u16(), &log[..]), (200, &b"hello"[..]));
    server.stop().await;
}

#[tokio::test]
async fn every_route_is_described() {
    let home = Home::new();
    let server = home.serve().await;
    let document = server.get("/v1/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for path in
        ["/v1/machines", "/v1/machines/{name}", "/v1/machines/{name}/attach", "/v1/events", "/v1/prune"]
    {
        assert!(paths.contains_key(path), "{path}");
    }
    for schema in ["CreateMachine", "MachineView", "Problem", "Event", "StreamControl"] {
        assert!(document["components"]["schemas"].get(schema).is_some(), "{schema}");
    }
    let info = server.get("/v1/server").await;
    assert_eq!(info["pid"], std::process::id());
    server.stop().await;
}
