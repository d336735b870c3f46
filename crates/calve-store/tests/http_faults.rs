//! A cache behind HTTP that lies about lengths, breaks off or stalls: told in a sentence, never waited for without end.
#![cfg(feature = "http")]
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use calve_store::HttpRemote;
use calve_store::http::message::Message;
use calve_store::remote::{CacheInfo, Remote, RemoteError};

/// A cache that gives each connection what `answer` writes, and keeps it open until the result is dropped.
fn answering(answer: impl Fn(&mut TcpStream) + Send + 'static) -> (HttpRemote, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = HttpRemote::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(), None);
    let (stay, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            answer(&mut stream);
            match ended.try_recv() {
                Err(mpsc::TryRecvError::Empty) => open.push(stream),
                _ => return,
            }
        }
    });
    (remote.unwrap(), stay)
}

fn info() -> Vec<u8> {
    CacheInfo { keys: vec!["a:b".to_owned()], priority: 1 }.encode()
}

fn head(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn an_answer_that_is_shorter_than_it_said_is_no_answer() {
    let (remote, _stay) = answering(|stream| {
        let body = info();
        stream.write_all(&[head(body.len() + 1).as_bytes(), &body].concat()).unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let error = remote.info().await.unwrap_err();
    assert!(
        matches!(error, RemoteError::Unreachable { .. }) && error.to_string().contains("broke off"),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_ends_where_it_said() {
    let (remote, _stay) = answering(|stream| {
        let body = info();
        stream.write_all(&[head(body.len()).as_bytes(), &body, b"and more"].concat()).unwrap();
    });
    assert_eq!(remote.info().await.unwrap().priority, 1);
    // What came behind it is no answer to the next question.
    assert_eq!(remote.info().await.unwrap().priority, 1);
}

#[tokio::test]
async fn an_answer_that_says_to_have_an_exabyte_is_not_waited_for() {
    let (remote, _stay) = answering(|stream| {
        let _ = stream.write_all(head(1 << 60).as_bytes());
        let piece = [7; 1 << 16];
        while stream.write_all(&piece).is_ok() {}
    });
    let error = remote.info().await.unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
}

/// Time passes here as fast as nothing happens, so that the limits are reached at once.
#[tokio::test(start_paused = true)]
async fn a_cache_that_stalls_before_or_within_its_answer_is_given_up() {
    let (silent, _stay) = answering(|_| {});
    let error = silent.info().await.unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    let (stalling, _stay) = answering(|stream| {
        let body = info();
        stream.write_all(&[head(body.len()).as_bytes(), &body[..body.len() - 1]].concat()).unwrap();
    });
    let error = stalling.info().await.unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
}
