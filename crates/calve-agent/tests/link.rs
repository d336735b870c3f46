//! The link: connections that break, strangers, garbage, long paths, devices.

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use calve_wire::agent::{FromAgent, Phase, ToAgent};
use calve_wire::frame::{Channel, Frame, LogEntry};
use calve_wire::machine::Restart;
use support::{Client, HOUR, Machine, TOKEN, command};

/// A small generator, so that a failure's seed shows the same run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn much_output_survives_random_reconnections_without_loss_doubles_or_disorder() {
    const LAST_NUMBER: u64 = 7_000_000;
    let seed = 0x5eed_0001;
    let mut random = Random(seed);
    let machine = Machine::start();
    let mut all: Vec<LogEntry> = Vec::new();
    let mut started = false;
    let mut connections = 0;
    loop {
        let last = all.last().map_or(0, |entry| entry.seq);
        let mut client = machine.connect_after(last);
        connections += 1;
        if !started {
            client.start(&format!("seq 1 {LAST_NUMBER}; seq 1 1000 >&2"), Restart::Never);
            started = true;
        }
        // Some connections keep what they get, others only remember it: the agent must not care.
        client.keeps = random.below(4) > 0;
        let hang_up_after = random.below(60) as usize;
        let enough = |client: &Client| client.log.len() >= hang_up_after;
        let complete = |client: &Client| {
            let status = client.status.as_ref().expect("welcomed");
            status.phase == Phase::Ended
                && client.log.last().map_or(last, |entry| entry.seq) == status.log_seq
        };
        if !client.keeps {
            // Without acknowledgements the spool fills up and nothing more comes.
            for _ in 0..random.below(20) {
                client.step(Duration::from_millis(1));
            }
        } else {
            client.until(|client| enough(client) || complete(client));
        }
        let ended = complete(&client);
        all.append(&mut client.log);
        if ended {
            break;
        }
    }
    let seqs_follow = all.iter().zip(1..).all(|(entry, seq)| entry.seq == seq);
    assert!(seqs_follow, "seed {seed:#x}: numbers with gaps or doubles");
    assert!(connections > 5, "seed {seed:#x}: only {connections} connections");
    let text = |channel| -> Vec<u8> {
        all.iter()
            .filter(|entry| entry.channel == channel)
            .flat_map(|entry| entry.bytes.iter().copied())
            .collect()
    };
    let expected: String = (1..=LAST_NUMBER).map(|n| format!("{n}\n")).collect();
    assert!(text(Channel::Stdout) == expected.as_bytes(), "seed {seed:#x}: the output differs");
    let expected: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert!(text(Channel::Stderr) == expected.as_bytes(), "seed {seed:#x}: the errors differ");
}

#[test]
fn a_full_spool_blocks_the_program_until_the_server_is_back() {
    let machine = Machine::start();
    let done = machine.path("done");
    let mut client = machine.connect();
    client.start(&format!("head -c 20000000 /dev/zero; echo > {}", done.display()), Restart::Never);
    drop(client);
    let mut client = machine.connect();
    client.keeps = false;
    let mut quiet = 0;
    while quiet < 20 {
        let before = client.log.len();
        client.step(Duration::from_millis(10));
        quiet = if client.log.len() == before { quiet + 1 } else { 0 };
    }
    assert!(!done.exists());
    let held: usize = client.log.iter().map(|entry| entry.bytes.len()).sum();
    assert!(held <= 8 * 1024 * 1024, "{held} bytes");
    client.keeps = true;
    client.send(&ToAgent::LogKept { seq: client.log.last().expect("much").seq });
    client.until_ended();
    assert_eq!(client.output(Channel::Stdout).len(), 20_000_000);
}

#[test]
fn the_program_outlives_its_connections_and_streams_do_not() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.start("echo up; exec sleep 87651", Restart::Never);
    let stream = client.open(command(&["sleep", "87652"]));
    client.until(|client| client.streams[&stream].opened && client.text() == "up\n");
    // Both are told of before they have become what they are called by.
    for seconds in ["87651", "87652"] {
        support::wait_for("its start", || support::is_alive(&["sleep", seconds]));
    }
    drop(client);
    support::wait_for("the command's end", || !support::is_alive(&["sleep", "87652"]));
    assert!(support::is_alive(&["sleep", "87651"]));
    let mut client = machine.connect_after(1);
    assert_eq!(client.status.as_ref().expect("welcomed").phase, Phase::Running);
    client.send(&ToAgent::Stop { grace_ms: 0 });
    client.until_phase(Phase::Ended);
    assert!(client.log.is_empty());
}

#[test]
fn a_new_connection_replaces_the_old_one() {
    let machine = Machine::start();
    let mut old = machine.connect();
    let mut new = machine.connect();
    while old.step(Duration::from_millis(100)) {}
    assert!(new.exec("exit 5").ended.expect("told").is_ok());
}

#[test]
fn strangers_get_no_answer_and_do_not_disturb() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut stranger = machine.stream();
    let mut preamble = TOKEN.parse::<calve_wire::frame::Token>().expect("a token").preamble();
    preamble[47] ^= 1;
    stranger.write_all(&preamble).expect("the agent reads");
    let mut hello = Vec::new();
    let message = ToAgent::Hello { version: 1, log_seq: 0, remaining: HOUR };
    Frame::Control(serde_json::to_vec(&message).expect("JSON")).encode(&mut hello);
    stranger.write_all(&hello).expect("the agent reads");
    assert_eq!(client.exec("echo fine").stdout, b"fine\n");
    stranger.set_nonblocking(true).expect("a socket");
    let error = stranger.read(&mut [0; 1]).expect_err("no byte and no end");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    // Hung up on in the end, still without a byte.
    stranger.set_nonblocking(false).expect("a socket");
    assert_eq!(stranger.read(&mut [0; 1]).expect("an end"), 0);
}

#[test]
fn garbage_and_half_frames_before_the_preamble_are_dropped() {
    let machine = Machine::start();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 42], &[255; 5000], &[0; 47]]
    {
        let mut client = Client::new(machine.stream().into());
        client.raw(garbage);
        client.preamble();
        client.hello(0);
        assert_eq!(client.exec("echo fine").stdout, b"fine\n");
    }
}

#[test]
fn a_preamble_in_the_middle_of_a_frame_begins_anew() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = client.open(command(&["sleep", "87653"]));
    client.until(|client| client.streams[&stream].opened);
    client.raw(&[0, 0, 16, 0, 2, 0, 0, 0, 1, 0, 1, 2, 3]);
    client.preamble();
    client.welcome = None;
    client.hello(0);
    support::wait_for("the old stream's end", || !support::is_alive(&["sleep", "87653"]));
    assert_eq!(client.exec("echo fine").stdout, b"fine\n");
}

#[test]
fn nonsense_after_the_preamble_ends_the_connection() {
    let machine = Machine::start();
    let mut early_data = Vec::new();
    Frame::Data { stream: 1, channel: Channel::Stdin, bytes: vec![1] }.encode(&mut early_data);
    let mut no_message = Vec::new();
    Frame::Control(b"{\"type\":\"dance\"}".to_vec()).encode(&mut no_message);
    for nonsense in [&early_data[..], &no_message, &[255; 16], &[0, 0, 0, 1, 77]] {
        let mut client = Client::new(machine.stream().into());
        client.preamble();
        client.raw(nonsense);
        while client.step(Duration::from_millis(100)) {}
        assert_eq!(machine.connect().exec("echo fine").stdout, b"fine\n");
    }
}

#[test]
fn a_server_of_another_version_is_told_so_and_not_obeyed() {
    let machine = Machine::start();
    let mut client = Client::new(machine.stream().into());
    client.preamble();
    client.send(&ToAgent::Hello { version: 99, log_seq: 0, remaining: HOUR });
    client.start("echo no", Restart::Never);
    client.until(|client| client.welcome.is_some());
    assert_eq!(machine.connect().status.expect("welcomed").phase, Phase::Waiting);
}

#[test]
fn a_run_directory_of_any_length_works() {
    let name = ["x".repeat(100), "y".repeat(100)].join("/");
    let machine = Machine::custom(HOUR, &name, &[]);
    assert_eq!(machine.connect().exec("echo fine").stdout, b"fine\n");
}

#[test]
fn the_agent_ends_with_its_run_directory() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.start("echo up; exec sleep 87654", Restart::Never);
    client.until(|client| client.text() == "up\n");
    std::fs::remove_dir_all(&machine.run_dir).expect("removed");
    machine.wait_gone();
    assert!(!support::is_alive(&["sleep", "87654"]));
}

#[test]
fn a_killed_agent_takes_everything_with_it() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.start("setsid sleep 87655 & echo up; exec sleep 87656", Restart::Never);
    client.until(|client| client.text() == "up\n");
    machine.kill_agent();
    support::wait_for("the end of all", || {
        !support::is_alive(&["sleep", "87655"]) && !support::is_alive(&["sleep", "87656"])
    });
}

#[test]
fn power_off_ends_the_agent_after_its_last_words() {
    let mut machine = Machine::start();
    let mut client = machine.connect();
    client.start("trap '' TERM; echo up; while :; do sleep 0.01; done", Restart::Always);
    client.until(|client| client.text() == "up\n");
    client.send(&ToAgent::PowerOff);
    client.until_ended();
    machine.wait_gone();
}

/// A terminal in raw mode stands in for a virtio-serial port: one end for the agent, one for the server.
#[test]
fn a_character_device_carries_connections_one_after_the_other() {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).expect("a terminal");
    rustix::pty::grantpt(&master).expect("granted");
    rustix::pty::unlockpt(&master).expect("unlocked");
    let name = rustix::pty::ptsname(&master, Vec::new()).expect("a name").into_string().expect("ASCII");
    // Held open, so that its modes stay.
    let held = std::fs::File::open(&name).expect("the other end");
    let mut modes = rustix::termios::tcgetattr(&held).expect("a terminal");
    modes.make_raw();
    rustix::termios::tcsetattr(&held, rustix::termios::OptionalActions::Now, &modes).expect("set");
    let machine = Machine::custom(HOUR, "run", &["--device", &name]);
    let again = || -> OwnedFd { master.try_clone().expect("a descriptor") };
    let mut first = Client::new(again());
    first.keeps = false;
    first.preamble();
    first.hello(0);
    first.start("echo up; exec sleep 87657", Restart::Never);
    first.until(|client| client.text() == "up\n");
    // The next server finds the middle of a frame, in both directions.
    first.raw(&[0, 0, 16, 0, 2, 0, 0]);
    drop(first);
    let mut second = Client::new(again());
    second.preamble();
    second.hello(0);
    second.until(|client| client.text() == "up\n");
    assert_eq!(second.exec("head -c 300000 /dev/zero").stdout.len(), 300_000);
    second.send(&ToAgent::Stop { grace_ms: 0 });
    second.until_ended();
    drop(machine);
}

#[test]
fn messages_of_the_agent_are_what_the_protocol_says() {
    let machine = Machine::start();
    let mut stream: UnixStream = machine.stream();
    let token: calve_wire::frame::Token = TOKEN.parse().expect("a token");
    stream.write_all(&token.preamble()).expect("the agent reads");
    let mut preamble = [0; calve_wire::frame::PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).expect("an answer");
    assert_eq!(preamble, token.preamble());
    let mut hello = Vec::new();
    let message = ToAgent::Hello { version: 1, log_seq: 0, remaining: HOUR };
    Frame::Control(serde_json::to_vec(&message).expect("JSON")).encode(&mut hello);
    stream.write_all(&hello).expect("the agent reads");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("a frame");
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).expect("a whole frame");
    assert_eq!(body[0], 0);
    let welcome = serde_json::from_slice(&body[1..]).expect("a message");
    assert!(matches!(welcome, FromAgent::Welcome { version: 1, .. }));
}
