//! The server as a process: one a directory, gone when idle, machines going on without it.

mod support;

use std::time::Duration;

use calve_server::daemon::{Config, ServeError};
use calve_wire::api::ProblemKind;
use serde_json::json;
use support::Home;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_second_server_is_refused_and_names_the_first() {
    let home = Home::new();
    let first = home.serve().await;
    let error = home.serve_with(home.config()).await.err().expect("refused");
    let me = std::process::id();
    assert!(matches!(error, ServeError::AlreadyRunning { pid: Some(pid), .. } if pid == me), "{error}");
    assert!(error.to_string().contains(&me.to_string()), "{error}");
    first.stop().await;
    home.serve().await.stop().await;
}

#[tokio::test]
async fn a_dead_servers_socket_is_replaced_also_where_its_path_is_long() {
    let mut home = Home::new();
    home.dirs.run = home.dir.path().join("x".repeat(120));
    home.dirs.create().unwrap();
    std::fs::write(home.dirs.socket(), "stale").unwrap();
    let server = home.serve().await;
    assert!(!std::fs::symlink_metadata(home.dirs.socket()).unwrap().is_file());
    server.task.abort();
}

#[tokio::test]
async fn newer_state_is_refused_with_a_hint() {
    let home = Home::new();
    home.serve().await.stop().await;
    let database = redb::Database::open(home.dirs.data.join("state.redb")).unwrap();
    let writing = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    writing.open_table(meta).unwrap().insert("format", 99).unwrap();
    writing.commit().unwrap();
    drop(database);
    let problem = home.serve_with(home.config()).await.err().expect("refused").problem();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    assert!(problem.title.contains("format 99") && problem.hint.is_some(), "{problem:?}");
}

#[tokio::test]
async fn machines_and_their_logs_go_on_over_servers() {
    let home = Home::new();
    let first = home.serve().await;
    first.create(home.job(&["out:one ", "cat", "exit:5"])).await;
    first.until("run-1", "running").await;
    first.stop().await;
    assert_eq!(home.driver.count(), 1);

    let second = home.serve().await;
    let mut socket = second.websocket("/v1/machines/run-1/attach").await;
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    socket.send(Message::Binary(b"\0two".to_vec().into())).await.unwrap();
    socket.send(Message::Binary(b"\0".to_vec().into())).await.unwrap();
    let mut said = Vec::new();
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        said.extend_from_slice(&bytes[1..]);
    }
    assert_eq!(said, b"one two");
    let ended = second.get("/v1/machines/run-1/wait").await;
    assert_eq!(ended["exit"]["code"], 5);
    second.stop().await;
}

#[tokio::test]
async fn an_idle_server_ends_but_never_while_a_machine_lives_or_somebody_is_connected() {
    let home = Home::new();
    let idle = || Config { idle_exit: Some(Duration::from_secs(1)), ..home.config() };
    let server = home.serve_with(idle()).await.unwrap();
    server.create(home.job(&["wait"])).await;
    server.until("run-1", "running").await;
    // More than the idle time: nothing else can show that it does not end.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let connection = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
    server.ask("POST", "/v1/machines/run-1/stop", json!({})).await;
    server.get("/v1/machines/run-1/wait").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!server.task.is_finished());
    drop(connection);
    let socket = server.socket();
    server.ended().await;
    assert!(!socket.exists());
    home.serve().await.stop().await;
}

#[tokio::test]
async fn tcp_asks_for_the_token() {
    let home = Home::new();
    let config = Config { listen: Some("127.0.0.1:0".parse().unwrap()), ..home.config() };
    let server = home.serve_with(config).await.unwrap();
    let token = server.ready.made_token.clone().expect("made just now");
    assert_eq!(std::fs::read_to_string(server.ready.token_file.clone().unwrap()).unwrap().trim(), token);
    let addr = server.ready.listens[1].strip_prefix("http://").unwrap().to_owned();
    let ask = async |header: String| {
        let mut stream = tokio::net::TcpStream::connect(&addr).await.unwrap();
        let request = format!("GET /v1/server HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask(String::new()).await, "401");
    assert_eq!(ask("authorization: Bearer wrong\r\n".to_owned()).await, "401");
    assert_eq!(ask(format!("authorization: Bearer {token}\r\n")).await, "200");
    server.stop().await;
}

#[tokio::test]
async fn hostile_bytes_do_not_harm_the_server() {
    let home = Home::new();
    let server = home.serve().await;
    let huge_head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many_heads = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for bytes in [&b"\0\0\0\0"[..], b"GET\r\n\r\n", huge_head.as_bytes(), many_heads.as_bytes()] {
        let mut stream = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    server.get("/v1/server").await;
    server.stop().await;
}
