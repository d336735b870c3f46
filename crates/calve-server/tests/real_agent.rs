//! Links to the real agent, `calve-agent plain`: ordinary processes under its supervision.

#[path = "real_agent/cutting.rs"]
mod cutting;
mod fake_agent;
#[path = "real_agent/running.rs"]
mod running;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use calve_server::agents::{AgentStream, StreamEvent};
use calve_server::logs::{LogOptions, Query};
use calve_server::ports::Ports;
use calve_wire::agent::{Phase, Target, ToAgent};
use calve_wire::frame::{Channel, LogEntry};
use calve_wire::machine::{Exit, PortMapping};
use cutting::Cutter;
use fake_agent::{DEADLINE, TOKEN, World, machine, remaining};
use futures_util::StreamExt;
use running::{RunningAgent, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the random choices of a test run come from; `CALVE_TEST_SEED` sets another one.
fn seed() -> u64 {
    std::env::var("CALVE_TEST_SEED").map_or(20_260_101, |seed| seed.parse().unwrap())
}

/// The numbers that `seq 1 count` prints.
fn numbers(count: u32) -> String {
    (1..=count).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "{n}");
        text
    })
}

fn link(world: &World, agent: &RunningAgent) {
    let remaining = Arc::new(remaining);
    world.agents.link(agent.id, agent.socket(), TOKEN.to_owned(), remaining).unwrap();
}

async fn linked(world: &World, n: u64) -> RunningAgent {
    let agent = RunningAgent::start(world.dir.path(), machine(n));
    link(world, &agent);
    world.until_linked(agent.id).await;
    agent
}

fn text(entries: &[LogEntry], channel: Channel) -> Vec<u8> {
    entries.iter().filter(|entry| entry.channel == channel).flat_map(|entry| entry.bytes.clone()).collect()
}

/// Whether the program has ended and all of its output is kept.
fn has_ended(world: &World, agent: &RunningAgent) -> bool {
    let report = world.agents.report(agent.id).unwrap();
    report.log_complete && report.status.is_some_and(|status| status.phase == Phase::Ended)
}

async fn until_ended(world: &World, agent: &RunningAgent) -> Exit {
    world.until("the program's end", || has_ended(world, agent)).await;
    world.agents.report(agent.id).unwrap().status.unwrap().last_exit.unwrap()
}

/// Starts a script, told again until it was heard, as the loop does: the link may break before.
async fn until_started(world: &World, agent: &RunningAgent, script: &str) {
    let started = || {
        let _ = world.agents.send(agent.id, start(script, false));
        world.agents.report(agent.id).unwrap().status.is_some_and(|status| status.starts == 1)
    };
    world.until("the start", started).await;
}

/// Everything that comes from a stream, by channel, and how it ended.
async fn drain(mut stream: AgentStream) -> (Vec<u8>, Vec<u8>, StreamEvent) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match tokio::time::timeout(DEADLINE, stream.recv()).await.unwrap().unwrap() {
            StreamEvent::Data(Channel::Stdout, bytes) => stdout.extend_from_slice(&bytes),
            StreamEvent::Data(Channel::Stderr, bytes) => stderr.extend_from_slice(&bytes),
            StreamEvent::Data(channel, _) => panic!("nothing comes on {channel:?}"),
            last => return (stdout, stderr, last),
        }
    }
}

fn shell(script: &str) -> Target {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Target::Command { argv, env: BTreeMap::new(), cwd: None, stdin: true, tty: None }
}

#[tokio::test]
async fn a_programs_output_input_and_exit_come_through() {
    let world = World::new();
    let agent = linked(&world, 1).await;
    let script = "read line; echo got $line; echo problem >&2; exit 7";
    world.agents.send(agent.id, start(script, true)).unwrap();
    let stdin = world.agents.stdin(agent.id).unwrap();
    stdin.send(b"this\n").await.unwrap();
    stdin.close().await.unwrap();
    let exit = until_ended(&world, &agent).await;
    assert_eq!(exit.code, Some(7));
    let log = world.log(agent.id).await;
    assert_eq!(text(&log, Channel::Stdout), b"got this\n");
    assert_eq!(text(&log, Channel::Stderr), b"problem\n");
}

#[tokio::test]
async fn commands_run_beside_the_program_with_input_output_signals_and_exit() {
    let world = World::new();
    let agent = linked(&world, 1).await;
    world.agents.send(agent.id, start("exec sleep 1000", false)).unwrap();
    let stream = world.agents.open(agent.id, shell("cat; echo problem >&2; exit 3")).unwrap();
    // More than both windows: it flows only as grants come.
    let input: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let (sender, mut receiver) = stream.split();
    let sent = input.clone();
    let sending = tokio::spawn(async move {
        sender.send(&sent).await.unwrap();
        sender.close_stdin().await.unwrap();
    });
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = loop {
        match tokio::time::timeout(DEADLINE, receiver.recv()).await.unwrap().unwrap() {
            StreamEvent::Data(Channel::Stdout, bytes) => stdout.extend_from_slice(&bytes),
            StreamEvent::Data(_, bytes) => stderr.extend_from_slice(&bytes),
            StreamEvent::Ended(exit) => break exit.unwrap(),
            StreamEvent::Failed { message: reason, .. } => panic!("{reason}"),
        }
    };
    sending.await.unwrap();
    assert_eq!((exit.code, stderr.as_slice()), (Some(3), b"problem\n".as_slice()));
    assert!(stdout == input, "{} of {} bytes came back", stdout.len(), input.len());

    let mut stream = world.agents.open(agent.id, shell("echo ready; exec sleep 1000")).unwrap();
    assert!(matches!(stream.recv().await, Some(StreamEvent::Data(Channel::Stdout, _))));
    stream.signal(15).unwrap();
    let (_, _, ended) = drain(stream).await;
    assert!(matches!(ended, StreamEvent::Ended(Some(Exit { signal: Some(15), .. }))), "{ended:?}");

    let missing = Target::Command {
        argv: vec!["/no/such/program".into()],
        env: BTreeMap::new(),
        cwd: None,
        stdin: false,
        tty: None,
    };
    let (_, _, ended) = drain(world.agents.open(agent.id, missing).unwrap()).await;
    let code = |event: &StreamEvent| match event {
        StreamEvent::Failed { exit, .. } => exit.and_then(|exit| exit.code),
        StreamEvent::Data(..) | StreamEvent::Ended(_) => None,
    };
    assert_eq!(code(&ended), Some(127), "{ended:?}");
    let unreadable = Target::Read { path: "/no/such/path".into() };
    let (output, _, ended) = drain(world.agents.open(agent.id, unreadable).unwrap()).await;
    assert_eq!((output.len(), code(&ended)), (0, Some(127)), "{ended:?}");
    world.agents.send(agent.id, ToAgent::Stop { grace_ms: 0 }).unwrap();
    until_ended(&world, &agent).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_a_command_holds_up_nothing_else() {
    let world = World::new();
    let agent = linked(&world, 1).await;
    world.agents.send(agent.id, start("while read line; do echo $line; done", true)).unwrap();
    let _flood = world.agents.open(agent.id, shell("exec cat /dev/zero")).unwrap();
    let stdin = world.agents.stdin(agent.id).unwrap();
    let mut output = world.logs.follow(agent.id, Query::default()).await.unwrap();
    for n in 0..50 {
        let line = format!("line {n}\n");
        stdin.send(line.as_bytes()).await.unwrap();
        let entry = tokio::time::timeout(DEADLINE, output.next()).await.unwrap().unwrap();
        assert_eq!(entry.bytes, line.as_bytes());
        let (stdout, _, _) = drain(world.agents.open(agent.id, shell("echo hello")).unwrap()).await;
        assert_eq!(stdout, b"hello\n");
    }
}

#[tokio::test]
async fn archives_go_in_and_come_out() {
    let world = World::new();
    let agent = linked(&world, 1).await;
    let dir = world.dir.path().join("tree");
    std::fs::create_dir(&dir).unwrap();
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n / 3) as u8).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    archive.append_data(&mut header, "some/file", content.as_slice()).unwrap();
    let archive = archive.into_inner().unwrap();

    let path = dir.to_str().unwrap().to_owned();
    let stream = world.agents.open(agent.id, Target::Write { path: path.clone() }).unwrap();
    stream.send(&archive).await.unwrap();
    stream.close_stdin().await.unwrap();
    assert_eq!(drain(stream).await.2, StreamEvent::Ended(None));
    assert_eq!(std::fs::read(dir.join("some/file")).unwrap(), content);

    let stream = world.agents.open(agent.id, Target::Read { path: format!("{path}/some") }).unwrap();
    let (stdout, _, ended) = drain(stream).await;
    assert_eq!(ended, StreamEvent::Ended(None));
    let mut back = tar::Archive::new(stdout.as_slice());
    let file = back.entries().unwrap().map(|entry| entry.unwrap()).find(|entry| entry.size() > 0).unwrap();
    assert_eq!(file.size(), content.len() as u64);

    let stream = world.agents.open(agent.id, Target::Read { path: "/no/such/path".into() }).unwrap();
    assert!(matches!(drain(stream).await.2, StreamEvent::Failed { .. }));
}

#[tokio::test]
async fn published_ports_reach_the_machine() {
    let world = World::new();
    let agent = linked(&world, 1).await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let machine_port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = connection.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let host_addr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ports = Ports::default();
    let wanted = [PortMapping { host_addr, host_port: 0, machine_port }];
    let published = ports.publish(agent.id, &wanted, &world.agents).unwrap();
    let mut clients = Vec::new();
    for n in 0..20u8 {
        let addr = SocketAddr::new(host_addr, published[0].host_port);
        clients.push(tokio::spawn(async move {
            let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
            let (mut reader, mut writer) = client.split();
            let sent = vec![n; 300_000];
            let mut came = Vec::new();
            let send = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(send, reader.read_to_end(&mut came));
            read.unwrap();
            assert!(came == sent);
        }));
    }
    for client in clients {
        tokio::time::timeout(DEADLINE, client).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_link_that_is_cut_at_random_loses_and_doubles_nothing() {
    // 50 MB of numbered lines, and room to keep all of it.
    const LINES: u32 = 6_500_000;
    let seed = seed();
    let options = LogOptions { cap_bytes: 512 * 1024 * 1024, ..LogOptions::default() };
    let world = World::with_options(options);
    let agent = RunningAgent::start(world.dir.path(), machine(1));
    let path = world.dir.path().join("cut.sock");
    let cutter = Cutter::listen(&path, agent.socket(), seed);
    world.agents.link(agent.id, path, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    world.until_linked(agent.id).await;
    let script = format!("seq 1 {LINES}; echo done >&2");
    until_started(&world, &agent, &script).await;
    let exit = until_ended(&world, &agent).await;
    assert_eq!(exit.code, Some(0), "seed {seed}");
    let log = world.log(agent.id).await;
    assert!(log.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "seed {seed}");
    let output = text(&log, Channel::Stdout);
    let expected = numbers(LINES);
    assert!(output == expected.as_bytes(), "seed {seed}: {} of {} bytes", output.len(), expected.len());
    assert_eq!(text(&log, Channel::Stderr), b"done\n");
    assert!(cutter.cuts() >= 20, "seed {seed}: only {} cuts", cutter.cuts());
}

#[tokio::test]
async fn a_server_that_dies_again_and_again_loses_and_doubles_nothing() {
    const LINES: u32 = 3_000_000;
    let seed = seed();
    let mut random = seed;
    let mut world = World::new();
    let agent = linked(&world, 1).await;
    until_started(&world, &agent, &format!("seq 1 {LINES}")).await;
    for round in 1..=20 {
        // As after kill -9: no word to anybody, and the last write may be there in part.
        let kept = world.logs.last_seq(agent.id).unwrap();
        let dir = world.die().await;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        running::tear(&dir.path().join("logs").join(agent.id.to_string()), random >> 60);
        world = World::at(dir, LogOptions::default());
        link(&world, &agent);
        world.until_linked(agent.id).await;
        assert!(world.logs.last_seq(agent.id).unwrap() >= kept, "seed {seed}, round {round}");
        let more = || has_ended(&world, &agent) || world.logs.last_seq(agent.id).unwrap() > kept;
        world.until("more output", more).await;
    }
    until_ended(&world, &agent).await;
    let log = world.log(agent.id).await;
    assert!(log.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "seed {seed}");
    assert!(text(&log, Channel::Stdout) == numbers(LINES).as_bytes(), "seed {seed}");
}

#[tokio::test]
async fn two_hundred_machines_are_linked_at_once() {
    let world = World::new();
    let agents: Vec<_> = (1..=200).map(|n| RunningAgent::start(world.dir.path(), machine(n))).collect();
    for agent in &agents {
        link(&world, agent);
    }
    let all = |phase: Phase| {
        let reports = world.agents.reports();
        reports.values().all(|report| {
            report.linked
                && report.log_complete
                && report.status.as_ref().is_some_and(|status| status.phase == phase)
        })
    };
    world.until("every link", || all(Phase::Waiting)).await;
    for agent in &agents {
        world.agents.send(agent.id, start("echo I am $$", false)).unwrap();
    }
    world.until("every end", || all(Phase::Ended)).await;
    for agent in &agents {
        assert!(text(&world.log(agent.id).await, Channel::Stdout).starts_with(b"I am "));
    }
}
