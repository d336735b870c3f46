//! Leases, with nobody there to enforce them but the agent.

mod support;

use calve_wire::agent::{FromAgent, LAST_WORDS_FILE, Phase, Remaining, ToAgent};
use calve_wire::frame::Frame;
use calve_wire::machine::Restart;
use support::{Machine, is_alive};

fn lease(until_deadline_ms: u64, grace_ms: u64) -> Remaining {
    Remaining { until_deadline_ms: Some(until_deadline_ms), grace_ms }
}

#[test]
fn a_lease_ends_with_no_client_connected() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let stopped = machine.path("stopped");
    let script = format!("trap 'echo > {}' TERM; echo up; while :; do sleep 0.01; done", stopped.display());
    client.start(&script, Restart::Always);
    client.until(|client| client.text() == "up\n");
    client.send(&ToAgent::Lease { remaining: lease(100, 400) });
    // Answered, so the lease before it was taken too.
    client.exec("true");
    drop(client);
    machine.wait_gone();
    assert!(stopped.exists(), "the program was not told at the deadline");
}

#[test]
fn an_agent_that_nobody_ever_spoke_with_goes_too() {
    let mut machine = Machine::with_lease(lease(50, 50));
    machine.wait_gone();
}

#[test]
fn an_ended_job_waits_for_its_log_to_be_fetched_until_the_lease_ends() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.keeps = false;
    client.start("echo precious", Restart::Never);
    client.until_ended();
    drop(client);
    let mut client = machine.connect();
    client.until_ended();
    assert_eq!(client.text(), "precious\n");
    client.send(&ToAgent::Lease { remaining: lease(0, 0) });
    machine.wait_gone();
}

#[test]
fn what_no_server_heard_is_left_when_the_lease_ends() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.keeps = false;
    client.start("echo result; exit 3", Restart::Never);
    client.until_ended();
    client.send(&ToAgent::Lease { remaining: lease(0, 0) });
    drop(client);
    machine.wait_gone();
    let left = std::fs::read(machine.run_dir.join(LAST_WORDS_FILE)).expect("it was left");
    let mut rest = left.as_slice();
    let (mut text, mut last) = (Vec::new(), None);
    while let Some((frame, length)) = Frame::decode(rest).expect("frames") {
        rest = &rest[length..];
        match frame {
            Frame::Log(entry) => text.extend_from_slice(&entry.bytes),
            Frame::Control(json) => last = Some(serde_json::from_slice(&json).expect("a message")),
            Frame::Data { .. } => panic!("data"),
        }
    }
    let Some(FromAgent::Status { status }) = last else { panic!("{last:?}") };
    assert_eq!((String::from_utf8_lossy(&text).as_ref(), status.phase), ("result\n", Phase::Ended));
    assert_eq!(status.last_exit.and_then(|exit| exit.code), Some(3));
}

#[test]
fn a_lease_can_be_renewed() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.start("exec sleep 65431", Restart::Never);
    client.until_phase(Phase::Running);
    for _ in 0..20 {
        client.send(&ToAgent::Lease { remaining: lease(60_000, 0) });
        client.send(&ToAgent::Lease { remaining: Remaining { until_deadline_ms: None, grace_ms: 0 } });
        client.exec("true");
    }
    assert!(is_alive(&["sleep", "65431"]));
    client.send(&ToAgent::Lease { remaining: lease(0, 0) });
    machine.wait_gone();
    assert!(!is_alive(&["sleep", "65431"]));
}
