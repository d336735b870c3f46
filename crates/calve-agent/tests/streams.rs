//! Streams: commands, terminals, archives, ports.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use calve_wire::agent::{Phase, Target, ToAgent, WindowSize};
use calve_wire::frame::Channel;
use calve_wire::machine::Restart;
use support::{Client, Machine, Stream, command, is_alive, wait_for};

fn code(stream: &Stream) -> Option<i32> {
    stream.ended.clone().expect("ended").expect("it ran").expect("a command").code
}

fn failure(stream: Stream) -> String {
    stream.ended.expect("ended").expect_err("it failed")
}

#[test]
fn a_command_has_its_outputs_code_environment_and_directory() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let argv = ["sh", "-c", "pwd; echo $COLOUR >&2; exit 9"].map(str::to_owned).into();
    let env = BTreeMap::from([("COLOUR".to_owned(), "green".to_owned())]);
    let stream =
        client.open(Target::Command { argv, env, cwd: Some("/usr".to_owned()), stdin: false, tty: None });
    let ended = client.end_of(stream);
    assert_eq!((ended.stdout.as_slice(), ended.stderr.as_slice()), (&b"/usr\n"[..], &b"green\n"[..]));
    assert_eq!(code(&ended), Some(9));
    assert!(
        ended.opened && ended.closed.contains(&Channel::Stdout) && ended.closed.contains(&Channel::Stderr)
    );
}

#[test]
fn a_command_that_is_not_there_fails_with_a_sentence() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = client.open(command(&["no-such-command"]));
    assert!(failure(client.end_of(stream)).contains("in no directory of PATH"));
    let stream = client.open(command(&["/etc/passwd"]));
    assert!(failure(client.end_of(stream)).contains("not executable"));
}

#[test]
fn input_flows_through_a_command_in_any_amount() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let argv = vec!["cat".to_owned()];
    let stream =
        client.open(Target::Command { argv, env: BTreeMap::new(), cwd: None, stdin: true, tty: None });
    let sent: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    client.data_all(stream, &sent);
    let ended = client.end_of(stream);
    assert!(ended.stdout == sent);
    assert_eq!(code(&ended), Some(0));
}

#[test]
fn output_waits_for_the_window() {
    let machine = Machine::start();
    let mut client = machine.connect();
    client.grants = false;
    let stream = client.open(command(&["head", "-c", "1000000", "/dev/zero"]));
    let window = calve_wire::frame::STREAM_WINDOW_BYTES;
    client.until(|client| client.streams[&stream].stdout.len() == window);
    // Others are not held up meanwhile.
    client.grants = true;
    assert_eq!(client.exec("echo fine").stdout, b"fine\n");
    assert_eq!(client.streams[&stream].stdout.len(), window);
    client.send(&ToAgent::Window { stream, bytes: 10_000_000 });
    assert_eq!(client.end_of(stream).stdout.len(), 1_000_000);
}

#[test]
fn more_input_than_the_window_ends_the_stream() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let argv = ["sleep", "76541"].map(str::to_owned).into();
    let stream =
        client.open(Target::Command { argv, env: BTreeMap::new(), cwd: None, stdin: true, tty: None });
    for _ in 0..10 {
        client.data(stream, &[0; 60_000]);
    }
    assert!(failure(client.end_of(stream)).contains("window"));
    wait_for("the command's end", || !is_alive(&["sleep", "76541"]));
}

fn terminal(client: &mut Client, script: &str) -> u32 {
    let argv = ["sh", "-c", script].map(str::to_owned).into();
    let tty = Some(WindowSize { rows: 11, columns: 22 });
    client.open(Target::Command { argv, env: BTreeMap::new(), cwd: None, stdin: true, tty })
}

#[test]
fn a_terminal_has_a_size_takes_another_and_passes_control_characters() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let script = "stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; echo up; while :; do sleep 0.01; done";
    let stream = terminal(&mut client, script);
    let seen =
        |client: &Client, text: &str| String::from_utf8_lossy(&client.streams[&stream].stdout).contains(text);
    client.until(|client| seen(client, "11 22\r\n") && seen(client, "up\r\n"));
    client.send(&ToAgent::Resize { stream, size: WindowSize { rows: 33, columns: 44 } });
    client.until(|client| seen(client, "33 44\r\n"));
    client.data(stream, &[3]);
    let ended = client.end_of(stream);
    assert_eq!(code(&ended), Some(3));
    assert!(String::from_utf8_lossy(&ended.stdout).contains("interrupted"));
}

#[test]
fn a_terminals_last_output_comes_before_its_end() {
    let machine = Machine::start();
    let mut client = machine.connect();
    for _ in 0..30 {
        let stream = terminal(&mut client, "seq 1 300; echo last");
        let ended = client.end_of(stream);
        assert!(ended.stdout.ends_with(b"300\r\nlast\r\n"), "{:?}", String::from_utf8_lossy(&ended.stdout));
        assert_eq!(code(&ended), Some(0));
    }
}

#[test]
fn the_end_of_input_reaches_a_terminal() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = terminal(&mut client, "cat; echo done");
    client.data_all(stream, b"line\n");
    assert!(client.end_of(stream).stdout.ends_with(b"done\r\n"));
}

#[test]
fn a_reset_kills_the_command_and_a_signal_reaches_it() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = client.open(command(&["sleep", "76542"]));
    client.until(|client| client.streams[&stream].opened);
    client.send(&ToAgent::Reset { stream });
    wait_for("the command's end", || !is_alive(&["sleep", "76542"]));
    let stream = client.open(command(&["sleep", "76543"]));
    client.until(|client| client.streams[&stream].opened);
    client.send(&ToAgent::StreamSignal { stream, signal: 15 });
    let ended = client.end_of(stream).ended.expect("told").expect("it ran").expect("a command");
    assert_eq!((ended.code, ended.signal), (None, Some(15)));
}

#[test]
fn commands_that_are_reset_at_any_moment_of_their_start_do_not_stay() {
    let machine = Machine::start();
    let mut client = machine.connect();
    for n in 0..100 {
        let stream = client.open(command(&["sleep", "76546"]));
        for _ in 0..n % 10 {
            client.step(std::time::Duration::from_micros(200));
        }
        client.send(&ToAgent::Reset { stream });
    }
    client.exec("true");
    wait_for("the commands' end", || !is_alive(&["sleep", "76546"]));
}

#[test]
fn a_command_that_leaves_something_behind_ends_all_the_same() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let ended = client.exec("sleep 76544 & echo started");
    assert_eq!(ended.stdout, b"started\n");
    wait_for("what it left behind", || is_alive(&["sleep", "76544"]));
    client.send(&ToAgent::Stop { grace_ms: 0 });
    client.until_phase(Phase::Ended);
    assert!(!is_alive(&["sleep", "76544"]));
}

#[test]
fn a_hundred_commands_run_at_once() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let go = machine.path("go");
    let script = format!("until test -e {}; do sleep 0.05; done; echo $0; exit $0", go.display());
    let streams: Vec<(u32, String)> = (0..100)
        .map(|n| (client.open(command(&["/bin/sh", "-c", &script, &n.to_string()])), n.to_string()))
        .collect();
    client.until(|client| client.streams.values().all(|stream| stream.opened));
    fs::write(go, "").expect("written");
    for (stream, n) in streams {
        let ended = client.end_of(stream);
        assert_eq!(ended.stdout, format!("{n}\n").as_bytes());
        assert_eq!(code(&ended), n.parse().ok());
    }
}

#[test]
fn trees_go_out_and_in() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let (from, to) = (machine.path("from"), machine.path("to"));
    fs::create_dir_all(from.join("sub")).expect("made");
    fs::create_dir_all(&to).expect("made");
    let content: Vec<u8> = (0..1_500_000u32).map(|n| (n / 3) as u8).collect();
    fs::write(from.join("sub/file"), &content).expect("written");
    let stream = client.open(Target::Read { path: from.display().to_string() });
    let archive = client.end_of(stream);
    assert_eq!(archive.ended, Some(Ok(None)));
    let stream = client.open(Target::Write { path: to.display().to_string() });
    client.data_all(stream, &archive.stdout);
    assert_eq!(client.end_of(stream).ended, Some(Ok(None)));
    assert!(fs::read(to.join("from/sub/file")).expect("there") == content);
}

#[test]
fn trees_that_cannot_be_had_say_why() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = client.open(Target::Read { path: "/nonexistent".to_owned() });
    assert!(failure(client.end_of(stream)).contains("/nonexistent"));
    let stream = client.open(Target::Write { path: "/etc/passwd".to_owned() });
    assert!(failure(client.end_of(stream)).contains("/etc/passwd"));
    let stream = client.open(Target::Write { path: machine.path("").display().to_string() });
    client.data_all(stream, &[b'x'; 100_000]);
    assert!(!failure(client.end_of(stream)).is_empty());
}

#[test]
fn a_port_of_the_machine_is_reached_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("an end");
        stream.write_all(&received).expect("somebody reads");
    });
    let machine = Machine::start();
    let mut client = machine.connect();
    let stream = client.open(Target::Tcp { port });
    client.until(|client| client.streams[&stream].opened);
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    client.data_all(stream, &sent);
    let ended = client.end_of(stream);
    assert!(ended.stdout == sent);
    assert_eq!(ended.ended, Some(Ok(None)));
    peer.join().expect("it went well");
    let stream = client.open(Target::Tcp { port });
    assert!(failure(client.end_of(stream)).contains("cannot be reached"));
}

#[test]
fn commands_have_the_programs_environment() {
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut program = support::shell("exec sleep 76545", false);
    program.env.insert("SHARED".to_owned(), "yes".to_owned());
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    client.until_phase(Phase::Running);
    assert_eq!(client.exec("echo $SHARED").stdout, b"yes\n");
}
