//! Fuzz targets of what agents, clients and the state send: frames in pieces and control messages, orders given in advance,
//! bodies of requests, records, user data, joins, borrowed hosts, switches. What is read is written as something that is read alike.

use calve_wire::agent::{FromAgent, ToAgent};
use calve_wire::api::{CreateMachine, ExecRequest, ExtendLease, Prune, StopMachine};
use calve_wire::frame::{Decoder, FRAME_MAX_BYTES, Frame, Incoming, PREAMBLE_BYTES, Token};
use calve_wire::join::{Knock, KnockAnswer, UserData};
use calve_wire::lend::{LendOrder, Lent};
use calve_wire::record::MachineRecord;
use calve_wire::start;
use calve_wire::system::{HostAnswer, HostFacts, HostOrder, HostRoom, SwitchRequest, SystemRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("agent_frames", agent_frames),
    ("agent_message", agent_message),
    ("body", body),
    ("knock", knock),
    ("lent_line", lent_line),
    ("machine_record", machine_record),
    ("start_order", start_order),
    ("switch", switch),
    ("user_data", user_data),
];

/// The token of every fuzzed connection.
pub const TOKEN: &str = "00112233445566778899aabbccddeeff";

/// What comes as JSON, of any of the types, is written as JSON that is read as the same.
fn json<T: Serialize + DeserializeOwned + PartialEq>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_vec(&value).expect("it was JSON");
    assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == value));
}

/// The first byte says how long the pieces are in which the rest comes, behind a good preamble. In what pieces it comes makes
/// no difference, and frames are written as the bytes that they were read from.
fn agent_frames(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let token: Token = TOKEN.parse().expect("digits");
    let stream = [&token.preamble()[..], rest].concat();
    let whole = incoming(&stream, stream.len());
    assert!(whole == incoming(&stream, usize::from(*first).max(1)), "pieces make a difference");
    assert_eq!(whole.first(), Some(&Ok(Incoming::Connected)));
    for frame in whole.into_iter().flatten() {
        if let Incoming::Frame(frame) = frame {
            let mut again = Vec::new();
            frame.encode(&mut again);
            assert!(again.len() <= 4 + FRAME_MAX_BYTES);
            assert_eq!(Frame::decode(&again), Ok(Some((frame, again.len()))));
        }
    }
    let _ = incoming(rest, PREAMBLE_BYTES);
}

/// Everything that a stream holds which comes in such pieces; after an error, what follows the next preamble.
fn incoming(stream: &[u8], piece: usize) -> Vec<Result<Incoming, ()>> {
    let mut decoder = Decoder::new(TOKEN.parse().expect("digits"));
    let mut found = Vec::new();
    for piece in stream.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(incoming)) => found.push(Ok(incoming)),
                Err(_) => found.push(Err(())),
            }
        }
    }
    found
}

fn agent_message(bytes: &[u8]) {
    json::<FromAgent>(bytes);
    json::<ToAgent>(bytes);
}

/// Bodies of requests to `/v1`.
fn body(bytes: &[u8]) {
    json::<CreateMachine>(bytes);
    json::<ExecRequest>(bytes);
    json::<StopMachine>(bytes);
    json::<ExtendLease>(bytes);
    json::<Prune>(bytes);
}

/// What stands between an agent that joins and its server.
fn knock(bytes: &[u8]) {
    json::<Knock>(bytes);
    json::<KnockAnswer>(bytes);
}

/// What a borrowed host and its server say to each other.
fn lent_line(bytes: &[u8]) {
    json::<LendOrder>(bytes);
    let Some(said) = str::from_utf8(bytes).ok().and_then(Lent::parse_line) else { return };
    assert_eq!(Lent::parse_line(&said.to_line()), Some(said));
}

/// What a host whose system is switched and its server say to each other, and what the server keeps of it.
fn switch(bytes: &[u8]) {
    json::<HostOrder>(bytes);
    json::<HostAnswer>(bytes);
    json::<HostRoom>(bytes);
    json::<HostFacts>(bytes);
    json::<SwitchRequest>(bytes);
    json::<SystemRecord>(bytes);
}

fn machine_record(bytes: &[u8]) {
    let Ok(record) = MachineRecord::from_json(bytes) else { return };
    let again = MachineRecord::from_json(&record.to_json()).expect("a record that was read can be written");
    assert!(again == record);
    assert_eq!(again.to_machine(), record.to_machine());
}

fn start_order(bytes: &[u8]) {
    let Some(order) = start::decode(bytes) else { return };
    assert!(bytes.ends_with(order.message));
    let texts = order.argv.iter().chain(&order.env).chain([&order.cwd, &order.program]);
    assert!(
        texts.into_iter().all(|text| text.ends_with(b"\0") && text.iter().filter(|b| **b == 0).count() == 1)
    );
}

fn user_data(bytes: &[u8]) {
    let Some(data) = str::from_utf8(bytes).ok().and_then(|text| UserData::parse(text).ok()) else { return };
    assert!(UserData::parse(&data.to_text()).is_ok_and(|again| again.to_text() == data.to_text()));
}
