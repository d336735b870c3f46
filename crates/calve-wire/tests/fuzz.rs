//! The fuzz targets of what agents, clients and the state send, on a stable Rust: over their corpora, over changed corpora, and
//! over arbitrary bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
#[path = "../../../fuzz/src/wire.rs"]
mod wire;

use calve_wire::frame::{Channel, Frame, LogEntry};
use calve_wire::lend::Lent;
use changes::{check, check_arbitrary, check_changed, write_corpus};
use wire::TARGETS;

/// The first words of an agent that joins.
const KNOCK: &str = r#"{"version":1,"machine":"m","key":"00","signature":"00","join":"1-00"}"#;

fn example(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/examples/{name}.1.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The messages of an example that holds several.
fn first_of(name: &str) -> Vec<u8> {
    let all: serde_json::Value = serde_json::from_slice(&example(name)).unwrap();
    let first = all.as_array().and_then(|all| all.first()).cloned().unwrap_or(all);
    serde_json::to_vec(&first).unwrap()
}

fn frames() -> Vec<u8> {
    let entry = LogEntry { seq: 1, time_unix_ms: 2, channel: Channel::Stdout, bytes: b"line\n".to_vec() };
    let data = Frame::Data { stream: 3, channel: Channel::Stderr, bytes: b"bytes".to_vec() };
    let mut bytes = vec![7];
    for frame in [Frame::Control(first_of("from-agent")), Frame::Log(entry), data] {
        frame.encode(&mut bytes);
    }
    bytes
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let order = b"1\x002\x00/\x00/nix/store/x/bin/p\x00p\x00a\x00K=V\x00\x00{}".to_vec();
    write_corpus(&[
        ("agent_frames", "three", frames()),
        ("agent_message", "from", first_of("from-agent")),
        ("agent_message", "to", first_of("to-agent")),
        ("body", "create", first_of("create-machine")),
        ("body", "exec", first_of("exec-request")),
        ("body", "extend", br#"{"by_ms":1}"#.to_vec()),
        ("knock", "one", KNOCK.as_bytes().to_vec()),
        ("knock", "answer", br#"{"answer":"refused","why":"expired"}"#.to_vec()),
        ("lent_line", "missing", Lent::Missing { paths: vec!["x".to_owned()] }.to_line().into_bytes()),
        ("lent_line", "ready", Lent::Ready.to_line().into_bytes()),
        ("machine_record", "one", first_of("machine-record")),
        ("start_order", "one", order),
        ("switch", "order", first_of("host-order")),
        ("switch", "answer", first_of("host-answer")),
        ("switch", "facts", first_of("host-facts")),
        ("switch", "record", first_of("system-record")),
        ("user_data", "one", first_of("user-data")),
    ]);
    check(TARGETS);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, 2000);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, 2000);
}
